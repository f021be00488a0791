"""Markdown from text that others wrote: whatever a name or a value holds, it stays text.

CommonMark lets a backslash stand before any ASCII punctuation, which then means nothing but itself: no link,
no code, no HTML, no table cell. Line breaks become spaces, since a line's beginning has meanings of its own.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Sequence
from typing import Any

from llmlab.readable import shortened, visible

LONGEST = 300  # characters of a value
_ESCAPES = {ord(sign): "\\" + sign for sign in string.punctuation if sign not in ",'\"/%"}
# brackets are escaped, so parentheses hold no address; a colon matters in bare addresses only
_PLAIN = {sign: shown for sign, shown in _ESCAPES.items() if chr(sign) not in "():;?"}
_HARMLESS = re.compile(r"(?<=\w)\\([.=-])(?=\w)")  # inside a word nothing begins: 1.5, llmlab:moby-dick


def escape(value: object, longest: int = LONGEST) -> str:
    """Returns a value as one line of Markdown that shows it and does nothing else."""
    text = " ".join(visible(shortened(str(value), longest)).split())
    if re.search(r"://|www|mailto|xmpp|@", text, re.I):
        return text.translate(_ESCAPES)  # hubs turn addresses into links where they stand bare
    return _HARMLESS.sub(r"\1", text.translate(_PLAIN))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table; its header is Markdown, its cells are text."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(escape(cell) for cell in row)} |" for row in rows)])


def fenced(text: str, language: str = "") -> str:
    """Returns a code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def as_json(data: Any) -> str:
    """Returns data as a code block of JSON."""
    return fenced(json.dumps(data, indent=2), "json")  # ASCII: control characters are escapes in it
