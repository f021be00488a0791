"""Streaming generation: pieces of text as the model says them, stoppable between tokens."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from llmlab.config.chat import ChatSettings
from llmlab.data.rendering import decode_answer
from llmlab.errors import LabError
from llmlab.models import LabDualHeadForCausalLM
from llmlab.models.transformer.context import context_length
from llmlab.models.typed import LanguageModel

LONGEST = 131_072  # tokens that are read by a model that names no end


class _Stop(StoppingCriteria):
    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full(
            (input_ids.shape[0],), self.asked.is_set(), device=input_ids.device, dtype=torch.bool
        )


class Piece(str):
    """A piece of an answer: what one token added to the text.

    Attributes:
        alpha: of a dual head, how much of this token the reward head said; None of other models.
    """

    alpha: float | None = None


class _Pieces(BaseStreamer):
    """Hands tokens over as pieces of text; a token that ends within a character waits for the next."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        skip_prompt: bool,
        alpha: Callable[[], float | None],
        ends: list[int] | int | None,
    ):
        self.tokenizer, self.alpha, self.ends = tokenizer, alpha, ends
        self.said: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._ids: list[int] = []
        self._shown = ""
        self._waiting: list[float] = []
        self._prompt = skip_prompt

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt, then one token at a time."""
        if self._prompt:
            self._prompt = False
            return
        self._ids += value.flatten().tolist()
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
        if text.endswith(
            "\n"
        ):  # a new line begins anew, so that long answers are not decoded again and again
            self._ids, self._shown = [], ""


def is_chat_model(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Returns whether conversations can be put to the model;
    a base model's tokenizer has no chat template.
    """
    return bool(tokenizer.chat_template)


def _too_long(tokens: str, limit: int) -> LabError:
    return LabError(
        f"the prompt has {tokens} tokens, and the model reads {limit:,} with its answer",
        remedy="shorten it; in a chat /reset begins a new conversation",
    )


@lru_cache(maxsize=4)
def _longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns how many characters a token stands for at most."""
    return max(map(len, tokenizer.get_vocab()), default=1)


def stream(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, prompt: str, settings: ChatSettings
) -> Generator[Piece]:
    """Yields the continuation of `prompt` piece by piece; closing the iterator stops the model after the
    current token.

    An answer ends where the model's positions do.

    Raises:
        LabError: when the prompt is empty of tokens, or has more than the model reads.
    """
    apart = model.config.is_encoder_decoder
    limit = context_length(model) or LONGEST
    if len(prompt) > limit * _longest_token(tokenizer):
        raise _too_long(f"more than {limit:,}", limit)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=apart or not is_chat_model(tokenizer))
    count = inputs["input_ids"].shape[1]
    if count == 0:
        raise LabError("the prompt is empty", remedy="say something for the model to continue")
    if count >= limit:
        raise _too_long(f"{count:,}", limit)
    sampling = settings.temperature > 0
    config = GenerationConfig(
        max_new_tokens=min(settings.max_new_tokens, limit if apart else limit - count),
        num_beams=1,
        do_sample=sampling,
        temperature=settings.temperature if sampling else None,
        top_p=settings.top_p if sampling else None,
        top_k=settings.top_k if sampling else None,
        repetition_penalty=settings.repetition_penalty,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if settings.seed is not None:
        torch.manual_seed(settings.seed)

    def alpha() -> float | None:
        if isinstance(model, LabDualHeadForCausalLM) and model.last_alpha is not None:
            return model.last_alpha[0].item()
        return None

    more: dict[str, Any] = {}
    if isinstance(model, LabDualHeadForCausalLM):
        more["alignment"] = settings.alignment
    pieces = _Pieces(tokenizer, not apart, alpha, config.eos_token_id)
    stop = _Stop()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            model.generate(
                input_ids=inputs["input_ids"].to(model.device),
                attention_mask=inputs["attention_mask"].to(model.device),
                generation_config=config,
                streamer=pieces,
                stopping_criteria=StoppingCriteriaList([stop]),
                **more,
            )
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)
            pieces.end()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (piece := pieces.said.get()) is not None:
            yield piece
    finally:
        stop.asked.set()
        worker.join()
    if failure and isinstance(failure[0], Exception) and not isinstance(failure[0], LabError):
        text = (str(failure[0]).strip().splitlines() or [type(failure[0]).__name__])[0][:200]
        raise LabError(
            f"failed while it answered ({text})", where=model.config.name_or_path or ""
        ) from failure[0]
    if failure:
        raise failure[0]
