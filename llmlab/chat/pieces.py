"""Pieces of text of an answer that is being written, and where it stops."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from llmlab.data.rendering import decode_answer


class Piece(str):
    """A piece of an answer: what one token added to the text.

    Attributes:
        alpha: of a dual head, how much of this token the reward head said; None of other models.
    """

    alpha: float | None = None


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


class TextStreamer(BaseStreamer):
    """Hands tokens over as pieces of text; a token that ends within a character waits for the next.

    Args:
        tokenizer: of the model.
        skip_prompt: whether the first call brings the prompt.
        alpha: of the last token, None where there is none.
        ends: ids of the tokens that end an answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        skip_prompt: bool,
        alpha: Callable[[], float | None],
        ends: list[int] | int | None,
    ):
        self.tokenizer, self.alpha, self.ends = tokenizer, alpha, ends
        self.said: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self.tokens = 0
        self.ended = False  # by an end token
        self._closing = {ends} if isinstance(ends, int) else set(ends or ())
        self._ids: list[int] = []
        self._shown = ""
        self._waiting: list[float] = []
        self._prompt = skip_prompt

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt, then one token at a time."""
        if self._prompt:
            self._prompt = False
            return
        ids = value.flatten().tolist()
        self.tokens += len(ids)
        self.ended = ids[-1] in self._closing
        self._ids += ids
        alpha = self.alpha()
        self._waiting += [] if alpha is None else [alpha]
        text = decode_answer(self.tokenizer, self._ids, self.ends)
        if not text.endswith("\ufffd"):
            self._hand_over(text)

    def end(self) -> None:
        """Hands over what still waits."""
        self._hand_over(decode_answer(self.tokenizer, self._ids, self.ends) if self._ids else "")
        self.said.put(None)

    def _hand_over(self, text: str) -> None:
        piece = Piece(text[len(self._shown) :])
        if not piece:
            return
        if self._waiting:
            piece.alpha = sum(self._waiting) / len(self._waiting)
        self._shown, self._waiting = text, []
        self.said.put(piece)
        if text.endswith("\n"):
            # a new line begins anew, so that long answers are not decoded again and again; its last token
            # stays, since tokenizers leave out a space at the beginning of a text
            self._ids = self._ids[-1:]
            self._shown = decode_answer(self.tokenizer, self._ids, self.ends)


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
