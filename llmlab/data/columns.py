"""Values of a source's own columns, nested ones too, and prompts with columns filled in."""

from __future__ import annotations

import re
from typing import Any

from llmlab.data.schemas import InvalidRow, Row

PLACE = re.compile(r"\{([\w.]+)\}")
TYPE_NAMES: dict[type, str] = {
    str: "text",
    list: "a list",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    bool: "true or false",
}


def at(row: Row, path: str, kind: type | tuple[type, ...] = str) -> Any:
    """Returns the value of a column, dots reaching into nested ones.

    Raises:
        InvalidRow: when it is missing or of another type.
    """
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        raise InvalidRow(f"no value in column {path!r}", malformed=True)
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(TYPE_NAMES[each] for each in kinds)
        actual = TYPE_NAMES.get(type(value), type(value).__name__)
        raise InvalidRow(f"column {path!r} holds {actual}, not {wanted}", malformed=True)
    return value


def named_in(prompt: str) -> list[str]:
    """Returns the columns that stand in braces in a prompt."""
    return PLACE.findall(prompt)


def fill(prompt: str, row: Row) -> str:
    """Returns a prompt with its columns filled in.

    Raises:
        InvalidRow: when a column is missing.
    """
    return PLACE.sub(lambda place: as_text(at(row, place[1], (str, int, float, list))), prompt)


def as_text(value: Any) -> str:
    """Returns a value as it stands in a prompt: a list as paragraphs, 2.0 as `2`."""
    if isinstance(value, list):
        return "\n\n".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
