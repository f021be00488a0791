"""Lines that fit on a screen."""

from __future__ import annotations

import io
import shutil
import textwrap

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from llmlab.readable import printable

MARGIN = 6  # columns that a list needs beside its words: pointer, key, and one that stays free


def broken(text: str) -> str:
    """Returns lines that are broken between words where the screen ends."""
    width = max(20, shutil.get_terminal_size().columns - 1)
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))


def within(label: str, width: int | None = None) -> str:
    """Returns the words of a line that fit on the screen, with a mark where some were left out: a terminal
    would cut it anywhere.

    Args:
        label: the line.
        width: columns; left out, those of the terminal, less what a list needs.
    """
    room = width or max(20, shutil.get_terminal_size().columns - MARGIN)
    if cell_len(label) <= room:
        return label
    mark = printable("…")
    cut = set_cell_size(label, room - len(mark)).rstrip()
    if not label[len(cut) :].startswith(" ") and " " in cut:  # within a word
        head = cut.rsplit(" ", 1)[0].rstrip()
        cut = head if cell_len(head) > room // 2 else cut
    return cut + mark


def wrapped(text: str, width: int) -> list[str]:
    """Returns a text as lines of at most `width` columns, broken between words where that can be; in the
    letters that the terminal has.
    """
    lines: list[str] = []
    for line in printable(text).expandtabs(4).split("\n"):
        pieces = Text(line).wrap(_MEASURES, max(1, width))
        lines += [piece.plain.rstrip() for piece in pieces] or [""]
    return lines


_MEASURES = Console(file=io.StringIO())  # for the widths of letters alone
