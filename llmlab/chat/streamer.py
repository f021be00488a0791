"""From tokens to pieces of text, as a model says them."""

from __future__ import annotations

import queue
from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from llmlab.chat.pieces import Piece
from llmlab.data.rendering import decode, decode_answer


class TextStreamer(BaseStreamer):
    """Hands tokens over as pieces of text; a token that ends within a character waits for the next.

    Args:
        tokenizer: of the model.
        skip_prompt: whether the first call brings the prompt.
        alpha: of the last token, None where there is none.
        ends: ids of the tokens that end an answer.
        raw: whether special tokens stay in the text.
        spoken: takes the ids of the tokens that were said.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        skip_prompt: bool,
        alpha: Callable[[], float | None],
        ends: list[int] | int | None,
        *,
        raw: bool = False,
        spoken: list[int] | None = None,
    ):
        self.tokenizer, self.alpha, self.ends = tokenizer, alpha, ends
        self.said: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self.tokens = 0
        self.ended = False  # by an end token
        self.raw = raw
        self.spoken = [] if spoken is None else spoken
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
        self.spoken += ids
        self.ended = ids[-1] in self._closing
        self._ids += ids
        alpha = self.alpha()
        self._waiting += [] if alpha is None else [alpha]
        text = self._text()
        if not text.endswith("\ufffd"):
            self._hand_over(text)

    def end(self) -> None:
        """Hands over what still waits."""
        self._hand_over(self._text() if self._ids else "")
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
            self._shown = self._text()

    def _text(self) -> str:
        if self.raw:
            return decode(self.tokenizer, self._ids)
        return decode_answer(self.tokenizer, self._ids, self.ends)
