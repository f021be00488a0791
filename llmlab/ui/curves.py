"""Curves as text, drawn by plotext."""

from __future__ import annotations

import string
from collections.abc import Sequence

import plotext
from rich.text import Text

from llmlab.readable import ERRORS
from llmlab.runs.curves import Point, thinned

COLOURS = ("blue", "orange", "green", "magenta", "cyan", "red")  # of plotext


def curve_drawing(
    training: Sequence[Point],
    held_out: Sequence[Point],
    width: int,
    height: int,
    names: tuple[str, str] = ("loss", "held-out loss"),
) -> str:
    """Returns a training figure as a line and a held-out one as crosses, `width` x `height` characters.

    Args:
        training: its points.
        held_out: those of the other.
        width: of the drawing.
        height: of the drawing, in lines.
        names: of the two, for the legend, which is its first line.
    """
    # braille has two dots a column
    training, held_out = (thinned(points, 2 * width) for points in (training, held_out))
    _begin(width, height - 1)
    if training:
        plotext.plot([s for s, _ in training], [v for _, v in training], marker="braille")
    if held_out:
        plotext.scatter([s for s, _ in held_out], [v for _, v in held_out], marker="x")
    marks = [f"⠒⠒ {names[0]}"] if training else []
    legend = "   ".join([*marks, *([f"x {names[1]}"] if held_out else [])])
    # plotext's own legend covers the beginning of a falling curve
    return f"{legend.rjust(width)}\n{plotext.uncolorize(plotext.build())}"


def overlaid(series: Sequence[Sequence[Point]], width: int, height: int) -> Text:
    """Returns several curves over each other, each drawn with its letter (a, b, c ...) and colour."""
    _begin(width, height)
    for number, points in enumerate(series):
        letter, colour = string.ascii_letters[number % 52], COLOURS[number % len(COLOURS)]
        if shown := thinned(points, width):
            plotext.plot([s for s, _ in shown], [v for _, v in shown], marker=letter, color=colour)
    return Text.from_ansi(plotext.build())


def letter(number: int) -> Text:
    """Returns the letter that `overlaid` draws a curve with, in its colour."""
    names = {"orange": "yellow"}
    colour = COLOURS[number % len(COLOURS)]
    return Text(string.ascii_letters[number % 52], style=f"bold {names.get(colour, colour)}")


def in_letters_of(encoding: str | None, drawn: str) -> str:
    """Returns a drawing in the letters that a stream of this encoding has."""
    unicode = (encoding or "").lower().startswith("utf")
    return drawn if unicode else drawn.encode("ascii", ERRORS).decode()


def _begin(width: int, height: int) -> None:
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    plotext.xlabel("step")
