"""Forms: a config class is walked field by field; every word and rule on the screen comes from the fields."""

from __future__ import annotations

import json
import re
import types
import typing
from typing import Any, Literal

import questionary
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from llmlab.config import LabBaseConfig, SourceConfig
from llmlab.config.base import KindConfig, validate
from llmlab.config.options import OptionInfo, option_info
from llmlab.errors import LabError
from llmlab.plan.report import plan_table

FIXED = ("kind", "schema_version")


class Cancelled(Exception):
    """The person left the form."""


def fill_in(config: KindConfig, console: Console | None = None) -> KindConfig | None:
    """Asks for every option that applies, shows the whole, and returns the config; None when the person leaves.

    The values of `config` are offered as they are; Enter keeps one.
    """
    console = console or Console()
    cls, values = type(config), {name: getattr(config, name) for name in type(config).model_fields}
    console.print(f"\n[bold]{cls.TITLE}[/bold] [dim]Enter keeps a value, Ctrl+C leaves[/dim]\n")
    try:
        _walk(cls, values, console, advanced=False)
        if _has_advanced(cls, values) and _ask(questionary.confirm("Look at the advanced options too?", default=False)):
            _walk(cls, values, console, advanced=True)
        while True:
            try:
                made = _build(cls, values)
            except LabError as error:
                console.print(f"[red]{error}[/red]")
                named = [name for name in re.findall(r"`(\w+)`", str(error)) if name in cls.model_fields]
                for name in dict.fromkeys(named) or cls.model_fields:
                    values[name] = ask_field(cls, name, values[name], console)
                continue
            console.print(review(made))
            console.print(plan_table(made))
            choice = _ask(questionary.select("What now?", ["keep it", "change an option", "throw it away"]))
            if choice == "keep it":
                return made
            if choice == "throw it away":
                return None
            names = [name for name in cls.model_fields if name not in FIXED and not made.inapplicable(name)]
            name = _ask(questionary.select("Which one?", names))
            values[name] = ask_field(cls, name, values[name], console)
    except Cancelled:
        return None


def review(config: KindConfig) -> Table:
    """Returns all values of a config, those that differ from the defaults marked."""
    table = Table("option", "value", "", title="review", title_justify="left")
    for name, field in type(config).model_fields.items():
        if name in FIXED or config.inapplicable(name):
            continue
        value = getattr(config, name)
        changed = value != field.get_default(call_default_factory=True)
        table.add_row(name, show(value), "[yellow]changed[/yellow]" if changed else "")
    return table


def show(value: Any) -> str:
    """Returns a value as a form shows it."""
    if hasattr(value, "line"):
        return value.line()
    if isinstance(value, list):
        return "; ".join(show(item) for item in value) or "none"
    if isinstance(value, LabBaseConfig):
        return json.dumps(value.to_json_dict())
    return "none" if value is None else str(value)


def ask_field(cls: type[LabBaseConfig], name: str, value: Any, console: Console) -> Any:
    """Asks for one option until the answer is valid by itself, and returns it.

    Raises:
        Cancelled: when the person leaves.
    """
    field, info = cls.model_fields[name], option_info(cls.model_fields[name])
    console.print(f"[cyan]{info.title}[/cyan] [dim]{_about(info)}[/dim]")
    kinds = _members(field.annotation)
    choices = next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is Literal), ())
    if kinds == [bool]:
        return _ask(questionary.confirm(name, default=value))
    if choices and len(kinds) == 1:
        shown = [questionary.Choice(f"{choice}  {info.choices.get(choice, '')}", choice) for choice in choices]
        return _ask(questionary.select(name, shown, default=value))
    if (lined := _lined(kinds)) is not None:
        return _ask_lines(lined, name, value)

    def fault(text: str) -> bool | str:
        try:
            _parse(cls, name, text)
        except LabError as error:
            return str(error).splitlines()[0]
        return True

    default = "" if value is None else value if isinstance(value, str) else json.dumps(value, default=_jsonable)
    return _parse(cls, name, _ask(questionary.text(name, default=default, validate=fault)))


def _walk(cls: type[LabBaseConfig], values: dict[str, Any], console: Console, *, advanced: bool) -> None:
    for name, info in cls.options().items():
        if name in FIXED or info.advanced != advanced or not _applies(info, values):
            continue
        values[name] = ask_field(cls, name, _offered(cls, name, values), console)


def _offered(cls: type[LabBaseConfig], name: str, values: dict[str, Any]) -> Any:
    """Returns the value to offer: what a config of the answers so far would take by itself (warm-up follows the steps)."""
    defaults = {other: field.get_default(call_default_factory=True) for other, field in cls.model_fields.items()}
    if values[name] != defaults[name]:
        return values[name]
    given = {other: value for other, value in values.items() if other in FIXED or value != defaults[other]}
    try:
        return getattr(validate(cls, given), name)
    except LabError:
        return values[name]


def _applies(info: OptionInfo, values: dict[str, Any]) -> bool:
    return all(values.get(other) in allowed for other, allowed in info.applies_when.items())


def _has_advanced(cls: type[LabBaseConfig], values: dict[str, Any]) -> bool:
    return any(info.advanced and _applies(info, values) for info in cls.options().values())


def _build(cls: type[KindConfig], values: dict[str, Any]) -> KindConfig:
    options = cls.options()
    kept = {name: value for name, value in values.items() if name in FIXED or _applies(options[name], values)}
    return validate(cls, kept)


def _about(info: OptionInfo) -> str:
    parts = [
        info.description,
        f"Typical: {info.typical}." if info.typical else "",
        f"Unit: {info.unit}." if info.unit else "",
    ]
    return " ".join(part for part in parts if part)


def _members(annotation: Any) -> list[Any]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if union else (annotation,)
    return [member for member in members if member is not type(None)]


def _parse(cls: type[LabBaseConfig], name: str, text: str) -> Any:
    """Returns the value that a typed text stands for.

    Raises:
        LabError: when the option does not take it.
    """
    field = cls.model_fields[name]
    text = text.strip()
    if not text and type(None) in typing.get_args(field.annotation):
        return None
    try:
        value: Any = json.loads(text) if str not in _members(field.annotation) or text[:1] in '{["' else text
    except json.JSONDecodeError:
        value = text
    adapter = TypeAdapter(typing.Annotated[field.annotation, *field.metadata, option_info(field)])
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        text = str(fault["ctx"]["error"]) if "error" in fault.get("ctx", {}) else fault["msg"]
        raise LabError(f"`{name}` {value!r}: {text[0].lower()}{text[1:]}") from None


def _lined(kinds: list[Any]) -> type[LabBaseConfig] | None:
    """Returns the class of a list whose items are written as lines (sources, rewards), or None."""
    inner = typing.get_args(kinds[0]) if len(kinds) == 1 and typing.get_origin(kinds[0]) is list else ()
    return inner[0] if inner and isinstance(inner[0], type) and hasattr(inner[0], "line") else None


def _ask_lines(cls: type[LabBaseConfig], name: str, value: list[Any]) -> list[Any]:
    def fault(text: str) -> bool | str:
        try:
            for line in filter(None, (part.strip() for part in text.split(";"))):
                validate(cls, line)
        except LabError as error:
            return str(error).splitlines()[0]
        return True

    known = {item.line(): item for item in value}
    parts = "name | subset | weight" if cls is SourceConfig else "name | weight | setting"
    text = _ask(questionary.text(f"{name}  ({parts}; ...)", default="; ".join(known), validate=fault))
    lines = [part.strip() for part in text.split(";") if part.strip()]
    return [known.get(line) or validate(cls, line) for line in lines]


def _jsonable(value: Any) -> Any:
    return value.to_json_dict() if isinstance(value, LabBaseConfig) else str(value)


def _ask(question: questionary.Question) -> Any:
    answer = question.ask(kbi_msg="")
    if answer is None:
        raise Cancelled
    return answer
