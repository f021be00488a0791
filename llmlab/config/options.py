"""How an option is declared: one call that holds everything a form, a help text, a schema or a docs page says
of it.

An option's field carries, besides pydantic's own constraints: a title, a description, a unit, a typical
range, one sentence for every choice, and the condition under which the option applies at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class OptionInfo:
    """What is known of an option beyond its type.

    Attributes:
        title: a few words, for a form's label.
        description: one sentence.
        unit: "tokens", "steps" ... or "".
        typical: the range people use, in words, or "".
        choices: value -> one sentence that says when to pick it.
        applies_when: {other option: values} under which this option applies; empty means always.
        advanced: whether a form asks for it only on request.
        aliases: other names under which a user may know it.
        resume: what becomes of a resumed run whose checkpoint has another value: "use" takes the new one and
            says so, "silent" takes it, "refuse" stops, since the checkpoint is of another model.
        resume_note: what "use" means here, in words.
        section: heading under which forms and docs have it, behind the options without one; "" for none.
    """

    title: str
    description: str
    unit: str = ""
    typical: str = ""
    choices: dict[str, str] = field(default_factory=dict)
    applies_when: Mapping[str, Sequence[str | bool | None]] = field(default_factory=dict)
    advanced: bool = False
    aliases: list[str] = field(default_factory=list)
    resume: Literal["use", "silent", "refuse"] = "use"
    resume_note: str = ""
    section: str = ""


class _Given(list[str]):
    """In `applies_when`: any value but none."""

    def __contains__(self, value: object) -> bool:
        return value is not None


GIVEN = _Given(["given"])

LARGEST, LARGEST_STEP = 10_000_000, 1_000_000_000  # above what any machine does with a size, and with steps
_SCHEMA_KEYS = (
    "unit",
    "typical",
    "choices",
    "applies_when",
    "advanced",
    "aliases",
    "resume",
    "resume_note",
    "section",
)


def option(
    default: Any,
    title: str,
    description: str,
    *,
    unit: str = "",
    typical: str = "",
    choices: dict[str, str] | None = None,
    applies_when: Mapping[str, Sequence[str | bool | None]] | None = None,
    advanced: bool = False,
    aliases: list[str] | None = None,
    resume: Literal["use", "silent", "refuse"] = "use",
    resume_note: str = "",
    section: str = "",
    **constraints: Any,
) -> Any:
    """Returns a pydantic field for an option; `constraints` are pydantic's own (`gt`, `ge`, `lt`, `le` ...).

    `default` may be a function without arguments, for lists. Whole numbers have an upper bound in any case:
    `LARGEST`, or `LARGEST_STEP` where the unit is steps.
    """
    values: tuple[Any, ...] = (
        unit,
        typical,
        choices,
        applies_when,
        advanced,
        aliases,
        resume,
        resume_note,
        section,
    )
    extra: dict[str, Any] = {
        key: value for key, value in zip(_SCHEMA_KEYS, values, strict=True) if value and value != "use"
    }
    if type(default) is int and not {"le", "lt"} & set(constraints):
        constraints["le"] = LARGEST_STEP if unit == "steps" else LARGEST
    kind = "default_factory" if callable(default) else "default"
    return Field(
        title=title, description=description, json_schema_extra=extra, **{kind: default}, **constraints
    )


def option_info(field_info: FieldInfo) -> OptionInfo:
    """Returns what is known of an option; a field not made by `option` has its title and description only."""
    extra = field_info.json_schema_extra if isinstance(field_info.json_schema_extra, dict) else {}
    metadata: dict[str, Any] = {key: extra[key] for key in _SCHEMA_KEYS if key in extra}
    return OptionInfo(field_info.title or "", field_info.description or "", **metadata)
