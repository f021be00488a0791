"""Streaming generation: pieces of text as the model says them, stoppable between tokens."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from llmlab.chat.pieces import Ending, Piece, StopTexts
from llmlab.chat.streamer import TextStreamer
from llmlab.config.chat import ChatSettings
from llmlab.data.tokenizer import text_ids
from llmlab.errors import LabError
from llmlab.models import LabDualHeadForCausalLM
from llmlab.models.seeded_draws import SeededDraws, seeds_of_rows
from llmlab.models.transformer.context import context_length
from llmlab.models.typed import LanguageModel

CHAT = 3  # what numbers are drawn for, beside those of a run
LONGEST = 131_072  # tokens that are read by a model that names no end


class _Stop(StoppingCriteria):
    def __init__(self, given_up: threading.Event | None = None) -> None:
        self.asked = threading.Event()
        self.given_up = given_up or self.asked

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        stopped = self.asked.is_set() or self.given_up.is_set()
        return torch.full((input_ids.shape[0],), stopped, device=input_ids.device, dtype=torch.bool)


def is_chat_model(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Returns whether conversations can be put to the model;
    a base model's tokenizer has no chat template.
    """
    return bool(tokenizer.chat_template)


class PromptTooLong(LabError):
    """A prompt that leaves the model no room to answer."""


def _too_long(tokens: str, limit: int) -> PromptTooLong:
    return PromptTooLong(
        f"the prompt has {tokens} tokens, and the model reads {limit:,} with its answer",
        remedy="shorten it; in a chat /reset begins a new conversation",
    )


@lru_cache(maxsize=4)
def _longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns how many characters a token stands for at most."""
    return max(map(len, tokenizer.get_vocab()), default=1)


@dataclass(frozen=True)
class Encoded:
    """A prompt as a model reads it.

    Attributes:
        ids: of its tokens.
        room: tokens that the answer may have.
    """

    ids: list[int]
    room: int


def encode(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    settings: ChatSettings,
    *,
    rendered: bool = True,
) -> Encoded:
    """Returns the tokens of a prompt, and how many the answer may have: it ends where the model's positions
    do.

    Args:
        model: that answers.
        tokenizer: its own.
        prompt: as text.
        settings: how it answers.
        rendered: whether the text comes from the chat template, where there is one, with its special tokens.

    Raises:
        LabError: when the prompt is empty of tokens, or has more than the model reads.
    """
    apart = model.config.is_encoder_decoder
    limit = context_length(model) or LONGEST
    if len(prompt) > limit * _longest_token(tokenizer):
        raise _too_long(f"more than {limit:,}", limit)
    ids = text_ids(tokenizer, prompt, add_special_tokens=apart or not (rendered and is_chat_model(tokenizer)))
    if not ids:
        raise LabError("the prompt is empty", remedy="say something for the model to continue")
    if len(ids) >= limit:
        raise _too_long(f"{len(ids):,}", limit)
    return Encoded(ids, min(settings.max_new_tokens, limit if apart else limit - len(ids)))


def generation_config(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: ChatSettings,
    tokens: int,
    rows: Sequence[int] = (0,),
) -> GenerationConfig:
    """Returns how answers are drawn: with a seed, each row by numbers of its own, whatever else is in the
    batch.

    Args:
        model: that answers.
        tokenizer: its own.
        settings: how it answers; the repetition penalty is not in it (`repetition_penalty`).
        tokens: of the longest answer.
        rows: numbers of the rows, by which they are drawn.
    """
    sampling = settings.temperature > 0
    config = GenerationConfig(
        max_new_tokens=tokens,
        num_beams=1,
        do_sample=sampling,
        temperature=settings.temperature if sampling else None,
        top_p=settings.top_p if sampling else None,
        top_k=settings.top_k if sampling else None,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    )
    if sampling and settings.seed is not None:
        config.watermarking_config = SeededDraws(seeds_of_rows(settings.seed, CHAT, 0, rows), tokens)
    return config


def repetition_penalty(settings: ChatSettings, padding: torch.Tensor | None = None) -> LogitsProcessorList:
    """Returns the processor of a repetition penalty, if there is one.

    Args:
        settings: that name it.
        padding: tokens before each prompt, which nobody said, (B,).
    """
    if settings.repetition_penalty == 1:
        return LogitsProcessorList()
    return LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty), prompt_ignore_length=padding)]
    )


def model_arguments(model: LanguageModel, settings: ChatSettings) -> dict[str, Any]:
    """Returns what a model's own `generate` takes beside transformers' arguments."""
    return {"alignment": settings.alignment} if isinstance(model, LabDualHeadForCausalLM) else {}


def failed(error: Exception, model: LanguageModel) -> LabError:
    """Returns the error of a model that failed while it answered."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return LabError(f"failed while it answered ({text})", where=model.config.name_or_path or "", exit_code=1)


def stream(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    settings: ChatSettings,
    spoken: list[int] | None = None,
) -> Generator[Piece, None, Ending]:
    """Yields the continuation of `prompt` piece by piece and returns how it ended; closing the iterator stops
    the model after the current token. `spoken` takes the ids of the tokens that were said.

    Raises:
        LabError: when the prompt is empty of tokens, or has more than the model reads.
    """
    encoded = encode(model, tokenizer, prompt, settings)
    return (yield from stream_encoded(model, tokenizer, encoded, settings, spoken=spoken))


def stream_encoded(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Encoded,
    settings: ChatSettings,
    stops: Sequence[str] = (),
    *,
    raw: bool = False,
    given_up: threading.Event | None = None,
    spoken: list[int] | None = None,
) -> Generator[Piece, None, Ending]:
    """Yields the continuation of a prompt that is tokens already, as `stream` does, up to the first of the
    texts `stops`, which is left out; with `raw`, special tokens stay in the text, those that end it too. Once
    `given_up` is set, the model stops after the current token. `spoken` takes the ids of what was said.
    """
    config = generation_config(model, tokenizer, settings, encoded.room)

    def alpha() -> float | None:
        if isinstance(model, LabDualHeadForCausalLM) and model.last_alpha is not None:
            return model.last_alpha[0].item()
        return None

    pieces = TextStreamer(
        tokenizer, not model.config.is_encoder_decoder, alpha, config.eos_token_id, raw=raw, spoken=spoken
    )
    stop, until = _Stop(given_up), StopTexts(stops)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            ids = torch.tensor([encoded.ids], device=model.device)
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                streamer=pieces,
                stopping_criteria=StoppingCriteriaList([stop]),
                logits_processor=repetition_penalty(settings),
                **model_arguments(model, settings),
            )
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)
            pieces.end()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while not until.found and (piece := pieces.said.get()) is not None:
            if shown := until.passed(piece):
                yield shown
        if rest := until.rest():
            yield rest
    finally:
        stop.asked.set()
        worker.join()
    if failure and isinstance(failure[0], Exception) and not isinstance(failure[0], LabError):
        raise failed(failure[0], model) from failure[0]
    if failure:
        raise failure[0]
    reason: Literal["stop", "length"] = "stop" if pieces.ended or until.found else "length"
    return Ending(reason, pieces.tokens, len(encoded.ids))
