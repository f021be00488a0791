"""Text on its way to a person: what a terminal would obey is shown as a symbol, what it lacks in plain
letters, and no more of it than can be read.

Nothing here knows rich; the console that prints such text is in `llmlab.screen`.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable
from typing import Any

ERRORS = "llmlab-readable"
BRAILLE = ("\u2800", "\u28ff")  # which curves are drawn with; the first one is empty
PAIRS = "·- –- —- »> «< ●* ○o █# ▌# ░. ━= ╸= ╺- ─- │| “\" ”\" ‘' ’' ┌+ ┐+ └+ ┘+ ├+ ┤+ ┬+ ┴+ ┼+ ╭+ ╮+ ╰+ ╯+"
PLAIN = {**{pair[0]: pair[1] for pair in PAIRS.split()}, "…": "...", "→": "->", "←": "<-", BRAILLE[0]: " "}

# What a terminal obeys or cannot be encoded, each as one character, so that positions in a text stay as they
# are: control characters other than newline and tab (C0 as their pictures), marks that turn the direction of
# writing, lone surrogates.
SYMBOLS = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys(
        [*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)], "\ufffd"
    ),
}
LONGEST, MOST_LINES = 2_000, 30  # characters of a line, and lines, of a message
LISTED = 20  # names of a list
TYPE_WORDS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def visible(text: str) -> str:
    """Returns a text of the same length in which nothing is left that a terminal would obey."""
    return text if text.isascii() and text.isprintable() else text.translate(SYMBOLS)


def shortened(text: str, longest: int = LONGEST) -> str:
    """Returns a text without its middle where it has more than `longest` characters,
    saying how many are left out.
    """
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - end]} [... {len(text) - longest:,} characters ...] {text[-end:]}"


def bounded(message: str) -> str:
    """Returns a message of lines that can be read: each shortened, and no more than a screen of them."""
    if len(message) <= LONGEST:
        return message
    lines = message.split("\n")
    shown = [shortened(line) for line in lines[:MOST_LINES]]
    return "\n".join(
        [*shown, *([f"and {len(lines) - MOST_LINES:,} lines more"] if len(lines) > MOST_LINES else [])]
    )


def listed(names: Iterable[Any], most: int = LISTED) -> str:
    """Returns names with commas between them, of long lists the first ones and how many more there are."""
    names = [shortened(str(name), 100) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def type_words(value: Any) -> str:
    """Returns what a value of JSON data is, in words: "a list"."""
    return TYPE_WORDS.get(type(value), type(value).__name__)


def nested_deeper(data: Any, depth: int) -> bool:
    """Returns whether lists and objects stand inside one another more than `depth` deep."""
    level = [data]
    for _ in range(depth):  # level by level: a recursion would end where the data begins to be deep
        level = [
            value
            for item in level
            if isinstance(item, (dict, list))
            for value in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(
        "*" if BRAILLE[0] < sign <= BRAILLE[1] else PLAIN.get(sign, "?") for sign in lacking
    ), error.end


codecs.register_error(ERRORS, _in_plain_letters)


def make_readable() -> None:
    """Lets the standard streams carry any text: what an encoding lacks is written in plain letters,
    and UTF-8 is read.
    """
    for stream in (sys.stdout, sys.stderr):
        if not is_unicode(stream) and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERRORS)
    if not is_unicode(sys.stdin) and hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")


def is_unicode(stream: Any) -> bool:
    """Returns whether a stream carries all letters."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def printable(text: str) -> str:
    """Returns a text in the letters that standard output has,
    with nothing in it that a terminal would obey.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return visible(text).encode(encoding, ERRORS).decode(encoding)
