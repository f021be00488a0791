"""Terminals and pipes that know neither UTF-8 nor colour: everything is said there as well, in the letters that they have."""

from __future__ import annotations

import codecs
import sys
from typing import Any

ERRORS = "llmlab-readable"
BRAILLE = ("\u2800", "\u28ff")  # which curves are drawn with; the first one is empty
PAIRS = "·- –- —- »> «< ●* ○o █# ▌# ░. ━= ╸= ╺- ─- │| “\" ”\" ‘' ’' ┌+ ┐+ └+ ┘+ ├+ ┤+ ┬+ ┴+ ┼+ ╭+ ╮+ ╰+ ╯+"
PLAIN = {**dict(PAIRS.split()), "…": "...", "→": "->", "←": "<-", BRAILLE[0]: " "}


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join("*" if BRAILLE[0] < sign <= BRAILLE[1] else PLAIN.get(sign, "?") for sign in lacking), error.end


codecs.register_error(ERRORS, _in_plain_letters)


def make_readable() -> None:
    """Lets the standard streams carry any text: what an encoding lacks is written in plain letters, and UTF-8 is read."""
    for stream in (sys.stdout, sys.stderr):
        if not is_unicode(stream) and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERRORS)
    if not is_unicode(sys.stdin) and hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")


def is_unicode(stream: Any) -> bool:
    """Returns whether a stream carries all letters."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def said(text: str) -> str:
    """Returns a text in the letters that standard output has."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, ERRORS).decode(encoding)
