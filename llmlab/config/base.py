"""The base of all configs: strict fields, aliases,
and pydantic's complaints turned into one clear message each.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, TypeAdapter, ValidationError, model_validator

from llmlab.config.options import OptionInfo, option_info
from llmlab.errors import LabError
from llmlab.readable import shortened

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

SCHEMA_VERSION: Literal[1] = 1
C = TypeVar("C", bound="LabBaseConfig")


class LabBaseConfig(BaseModel):
    """A block of options: unknown names are refused, types are not guessed, aliases are renamed."""

    model_config = ConfigDict(
        extra="forbid", strict=True, validate_default=True, defer_build=True, protected_namespaces=()
    )

    @classmethod
    def options(cls) -> dict[str, OptionInfo]:
        """Returns every option of this config with what its field says of it, in the order of the fields;
        those of a section follow the others.
        """
        infos = {name: option_info(field) for name, field in cls.model_fields.items()}
        return dict(sorted(infos.items(), key=lambda entry: bool(entry[1].section)))

    @classmethod
    def with_current_names(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Returns options that an older version wrote, under the names that they have today."""
        names = {alias: name for name, info in cls.options().items() for alias in info.aliases}
        return {names.get(name, name): value for name, value in data.items()}

    @model_validator(mode="before")
    @classmethod
    def _rename_aliases(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for name, info in cls.options().items():
            for alias in info.aliases:
                if alias in data and name in data:
                    raise ValueError(f"`{alias}` is another name of `{name}`: set only one of them")
                if alias in data:
                    data[name] = data.pop(alias)
        return data

    @model_validator(mode="after")
    def _refuse_what_does_not_apply(self) -> LabBaseConfig:
        for name in self.model_fields_set:
            condition = self.inapplicable(name)
            field = type(self).model_fields[name]
            if condition and getattr(self, name) != field.get_default(call_default_factory=True):
                raise ValueError(f"`{name}` applies only when {condition}: remove it, or change that")
        return self

    def inapplicable(self, name: str) -> str:
        """Returns the unmet condition of an option in words, or "" where the option applies."""
        for other, values in option_info(type(self).model_fields[name]).applies_when.items():
            if getattr(self, other) not in values:
                return f"`{other}` is {' or '.join(str(value) for value in values)}"
        return ""

    def to_json_dict(self) -> dict[str, Any]:
        """Returns the config as JSON data, without the options that do not apply."""
        data = self.model_dump(mode="json")
        for name in type(self).model_fields:
            if self.inapplicable(name):
                data.pop(name)
            elif isinstance(value := getattr(self, name), LabBaseConfig):
                data[name] = value.to_json_dict()
        return data


class KindConfig(LabBaseConfig):
    """A config that stands alone in a file: it says its kind and the version of its schema."""

    KIND: ClassVar[str] = ""
    TITLE: ClassVar[str] = ""
    kind: str
    schema_version: Literal[1] = SCHEMA_VERSION
    _migrated: str = PrivateAttr("")

    @classmethod
    def follows(cls, name: str, values: Mapping[str, Any]) -> bool:
        """Returns whether an option follows from the values of others, so that a form need not ask for it."""
        return False

    @property
    def migrated(self) -> str:
        """What was changed because the file is of an older schema; "" where it is of this one."""
        return self._migrated


def validate(cls: type[C], data: dict[str, Any] | str, where: str = "") -> C:
    """Returns the validated config.

    Raises:
        LabError: with one line for every fault: option, value, rule, and the nearest valid value.
    """
    if fault := no_text(data):
        raise LabError(fault, where=where)
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(cls, fault) for fault in _likeliest(error.errors())))
        raise LabError("\n".join(lines), where=where) from None


def no_text(data: Any) -> str:
    """Returns which text in JSON data no file and no tokenizer can hold, and why; "" where all can."""
    waiting = [("", data)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{place}.{key}" if place else str(key), key) for key in value]
            waiting += [(f"{place}.{key}" if place else str(key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(place, inner) for inner in value]
        elif isinstance(value, str) and "\0" in value:
            return f"`{shortened(place, 100)}` contains a NUL character"
        elif (
            isinstance(value, str)
            and not value.isascii()
            and any("\ud800" <= sign <= "\udfff" for sign in value)
        ):
            return f"`{shortened(place, 100)}` is not UTF-8 text: it holds half of a character"
    return ""


def validate_option(cls: type[LabBaseConfig], name: str, value: Any) -> Any:
    """Returns the value of one option by itself, as JSON data of its type.

    Raises:
        LabError: with what is wrong, in words.
    """
    field = cls.model_fields[name]
    if fault := no_text({name: value}):
        raise LabError(fault)
    rules: Any = Annotated[field.annotation, *field.metadata, option_info(field)]
    try:
        return TypeAdapter(rules).validate_python(value, strict=True)
    except ValidationError as error:
        wrong = _likeliest(error.errors())[0]
        wrong["loc"] = (name, *wrong["loc"])
        raise LabError(_explain(cls, wrong)) from None


SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9}
NUMBER = re.compile(
    r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*|(?=\.\d))(?:\.\d+)?(?:e[+-]?\d{1,3})?)\s*([kmb%]?)",
    re.IGNORECASE | re.ASCII,
)


def as_number(cls: type[LabBaseConfig], name: str, text: str) -> Any:
    """Returns the number that a person wrote for an option, as its type takes it: "4,000", "4k", "1e3",
    "1_000", "20%".

    The text itself is returned where the option takes texts, or where it is no number of that kind: a share
    takes "20%", a whole number takes only what is whole ("1.5k", but not "1.000", which is a thousand in some
    countries).
    """
    field = cls.model_fields.get(name)
    kinds = set(members(field.annotation)) if field else set()
    match = NUMBER.fullmatch(text.strip())
    if not match or str in kinds or not kinds & {int, float} or len(text) > 40:
        return text
    digits, unit = re.sub("[,_]", "", match[1]), match[2].lower()
    if unit == "%" and not _is_share(field):
        return text
    if float not in kinds and "." in digits and not unit and "e" not in digits.lower():
        return text
    value = Decimal(digits) * (Decimal("0.01") if unit == "%" else Decimal(SUFFIXES.get(unit, 1)))
    if float not in kinds:
        return int(value) if value == value.to_integral_value() and value.adjusted() < 40 else text
    return (
        int(value)
        if int in kinds and value == value.to_integral_value() and value.adjusted() < 40
        else float(value)
    )


SWITCHES = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


def as_typed(cls: type[LabBaseConfig], data: dict[str, Any]) -> dict[str, Any]:
    """Returns the data of a file whose values are written as people write them (YAML): a text where an option
    takes a number or a switch is read as such ("4k", "on"); other values stay as they are.
    """
    names = {alias: name for name, info in cls.options().items() for alias in info.aliases}
    typed: dict[str, Any] = {}
    for key, value in data.items():
        name = names.get(key, key)
        field = cls.model_fields.get(name)
        kinds = _flat(field.annotation) if field else []
        block = next((t for t in kinds if isinstance(t, type) and issubclass(t, LabBaseConfig)), None)
        if block and isinstance(value, dict):
            value = as_typed(block, value)
        elif block and isinstance(value, list):
            value = [as_typed(block, item) if isinstance(item, dict) else item for item in value]
        elif isinstance(value, str) and bool in kinds and str not in kinds:
            value = SWITCHES.get(value.lower(), value)
        elif isinstance(value, str):
            value = as_number(cls, name, value)
        typed[key] = value
    return typed


def _is_share(field: Any) -> bool:
    bounds = [getattr(rule, bound, None) for rule in field.metadata for bound in ("lt", "le")]
    small = any(bound is not None and bound <= 1 for bound in bounds)
    return float in members(field.annotation) and (small or (field.description or "").startswith("Share "))


def _likeliest(faults: list[ErrorDetails]) -> list[ErrorDetails]:
    """Returns the faults without those of the other branches of a union (pydantic reports every branch)."""
    likeliest = []
    for fault in faults:
        beside = [other for other in faults if other is not fault and len(fault["loc"]) > 1]
        other_branch = any(
            other["loc"][: len(fault["loc"]) - 1] == fault["loc"][:-1] and not other["type"].endswith("_type")
            for other in beside
        )
        if not (fault["type"].endswith("_type") and other_branch):
            likeliest.append(fault)
    return likeliest


def _explain(cls: type[LabBaseConfig], fault: ErrorDetails) -> str:
    path = [
        part
        for part in fault["loc"]
        if isinstance(part, int) or not part.startswith(("function-", "list[", "literal["))
    ]
    owner, field = _owner_of(cls, path)
    name = ".".join(str(part) for part in path)
    value, kind = fault.get("input"), fault["type"]
    if kind == "extra_forbidden":
        unknown = str(fault["loc"][-1])  # may look like one of the tags taken out above
        return f"unknown option `{'.'.join([*map(str, path[:-1]), unknown])}`{_suggest(unknown, owner)}"
    if kind == "value_error":
        text = str(fault["ctx"]["error"])
        return text if not path or f"`{path[-1]}`" in text or f"`{name}`" in text else f"`{name}`: {text}"
    if kind == "literal_error":
        choices = [str(choice) for choice in _literals(owner, path)]
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"`{name}` {value!r} is not one of {', '.join(choices)}{hint}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = fault["ctx"][key]
        return f"`{name}` {value!r} must be {words} {bound}{_nearest(kind, bound, value, field)}"
    if kind == "missing":
        return f"`{name}` is missing"
    if kind.endswith(("_type", "_parsing")) or kind == "int_from_float":
        wanted = _TYPE_WORDS.get(kind.split("_")[0], kind.split("_")[0])
        return f"`{name}` {value!r} ({type(value).__name__}) is not {wanted}"
    if kind == "string_pattern_mismatch":
        return f"`{name}` {value!r} is not made of {in_words(fault['ctx']['pattern'])}"
    return f"`{name}` {value!r}: {fault['msg']}"


# the pattern of an option -> what a text has to be made of
PATTERNS = {r"^[\w.+-]+$": "letters, digits and . + - _ (no spaces)"}


def in_words(pattern: str) -> str:
    """Returns the rule that a pattern of an option stands for."""
    return PATTERNS[pattern]


_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "too_short": ("at least this long:", "min_length"),
    "string_too_short": ("at least this long:", "min_length"),
}
_TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
}


def _nearest(kind: str, bound: Any, value: Any, field: Any) -> str:
    if kind in ("greater_than_equal", "less_than_equal"):
        return f": use {bound}"
    if (
        kind == "greater_than"
        and isinstance(value, int)
        and isinstance(bound, int)
        and field.annotation is int
    ):
        return f": use {bound + 1} or more"
    return ""


STARTS = (
    "policy_checkpoint",
    "backbone",
    "policy",
    "base_model",
)  # what kinds call the model they begin with


def _suggest(name: str, owner: type[LabBaseConfig] | None) -> str:
    names = [
        option_name
        for field, info in (owner.options() if owner else {}).items()
        for option_name in (field, *info.aliases)
    ]
    if name in STARTS and (start := getattr(owner, "STARTS_FROM", "")):
        return f": the option for the starting model is `{start}`"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return (
        f": did you mean `{near[0]}`?"
        if near
        else f": the options are {', '.join(owner.options())}"
        if owner
        else ""
    )


def _owner_of(cls: type[LabBaseConfig], path: list[int | str]) -> tuple[type[LabBaseConfig] | None, Any]:
    """Returns the config class and the field that a fault's path ends in."""
    owner, field = cls, None
    for position, part in enumerate(path):
        if isinstance(part, int):
            continue
        field = owner.model_fields.get(part)
        if field is None or position == len(path) - 1:
            break
        nested = [t for t in _flat(field.annotation) if isinstance(t, type) and issubclass(t, LabBaseConfig)]
        named = [t for t in nested if t.__name__ in path]
        if nested:
            owner = (named or nested)[0]
    return owner, field


def members(annotation: Any) -> list[Any]:
    """Returns the types that an annotation takes, None aside."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [
        member
        for member in (typing.get_args(annotation) if union else (annotation,))
        if member is not type(None)
    ]


def _flat(annotation: Any) -> list[Any]:
    inner = [] if typing.get_origin(annotation) is Literal else typing.get_args(annotation)
    return [inner_type for arg in inner for inner_type in _flat(arg)] or [annotation]


def _literals(owner: type[LabBaseConfig] | None, path: list[int | str]) -> list[Any]:
    fields = owner.model_fields if owner else {}
    name = next((part for part in reversed(path) if isinstance(part, str) and part in fields), None)
    if name is None:
        return []
    return [
        v
        for t in _flat(fields[name].annotation)
        if typing.get_origin(t) is Literal
        for v in typing.get_args(t)
    ]
