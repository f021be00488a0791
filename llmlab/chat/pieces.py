"""Pieces of text of an answer that is being written, and where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


class Piece(str):
    """A piece of an answer: what one token added to the text.

    Attributes:
        alpha: of a dual head, how much of this token the reward head said; None of other models.
        thought: whether it is reasoning that a server told apart; it is shown, and no part of the answer.
    """

    alpha: float | None = None
    thought: bool = False


@dataclass(frozen=True)
class Ending:
    """How an answer ended.

    Attributes:
        reason: "stop" where the model ended it, or a stop text did; "length" where it was cut.
        tokens: of it, an end token included.
        prompt_tokens: of the prompt.
    """

    reason: Literal["stop", "length"]
    tokens: int
    prompt_tokens: int


class StopTexts:
    """Finds the first of some texts in an answer that comes in pieces.

    What may be the beginning of one waits until it is known.

    Args:
        stops: the texts; none lets every piece pass at once.

    Attributes:
        found: whether one of them was said.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self.stops = [stop for stop in stops if stop]
        self.found = False
        self._waiting = ""

    def passed(self, piece: Piece) -> Piece:
        """Returns what can be shown now; "" while it has to wait."""
        if not self.stops:
            return piece
        text = self._waiting + piece
        if places := [place for stop in self.stops if (place := text.find(stop)) >= 0]:
            self.found = True
            shown, self._waiting = Piece(text[: min(places)]), ""
        else:
            ready = len(text) - max(_beginning(text, stop) for stop in self.stops)
            shown, self._waiting = Piece(text[:ready]), text[ready:]
        shown.alpha = piece.alpha
        return shown

    def rest(self) -> Piece:
        """Returns what still waits when the answer has ended."""
        return Piece("" if self.found else self._waiting)


def _beginning(text: str, stop: str) -> int:
    """Returns how many characters at the end of a text are the beginning of another."""
    most = min(len(text), len(stop) - 1)
    return next((count for count in range(most, 0, -1) if text.endswith(stop[:count])), 0)
