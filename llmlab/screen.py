"""The console of the lab: a text is printed as it is. Square brackets are no markup, colons no emoji, escape
sequences no commands, so that a name, a row or an answer can hold anything. Styles come from `styled`, which
knows what is ours.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from llmlab.readable import visible


class LabConsole(Console):
    """A console for text from outside.

    Args:
        **kwargs: of rich's console.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"markup": False, "emoji": False, **kwargs})

    def render_str(self, text: str, **kwargs: Any) -> Text:
        """Returns the text that a string stands for."""
        return super().render_str(visible(text), **kwargs)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yields the segments of what is printed; every text on the screen comes by here."""
        if isinstance(renderable, Text) and (shown := visible(renderable.plain)) != renderable.plain:
            renderable = renderable.copy()
            renderable.plain = shown  # of the same length, so that the styles stay where they are
        return super().render(renderable, options)


def styled(pattern: str, *values: object) -> Text:
    """Returns a text from rich's markup; each `{}` in it takes a value, which is shown as it is,
    in the style of its place.
    """
    text = Text.from_markup(pattern, emoji=False)
    places = [match.start() for match in re.finditer(r"\{\}", text.plain)]
    pieces = list(text.divide([offset for place in places for offset in (place, place + 2)]))
    for index, value in zip(range(1, len(pieces), 2), values, strict=True):
        styles = [span.style for span in pieces[index].spans]
        pieces[index] = Text(visible(str(value)))
        for style in styles:
            pieces[index].stylize(style)
    return Text().join(pieces)


def screen() -> LabConsole:
    """Returns the console for progress: standard error, so that standard output carries results only."""
    return LabConsole(file=sys.stderr)


def warn(text: str) -> None:
    """Prints a line that deserves attention on standard error."""
    screen().print(text, style="yellow", highlight=False, soft_wrap=True)
