"""Streaming generation: pieces of text as the model says them, stoppable between tokens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from llmlab.config.chat import ChatSettings
from llmlab.errors import LabError


class _Stop(StoppingCriteria):
    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.asked.is_set(), device=input_ids.device, dtype=torch.bool)


def is_chat_model(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Returns whether conversations can be put to the model; a base model's tokenizer has no chat template."""
    return bool(tokenizer.chat_template)


def stream(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, settings: ChatSettings) -> Iterator[str]:
    """Yields the continuation of `prompt` piece by piece; closing the iterator stops the model after the current token.

    Raises:
        LabError: when the prompt is empty of tokens.
    """
    apart = model.config.is_encoder_decoder
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=apart or not is_chat_model(tokenizer))
    if inputs["input_ids"].shape[1] == 0:
        raise LabError("the prompt is empty", remedy="say something for the model to continue")
    sampling = settings.temperature > 0
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
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
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=not apart, skip_special_tokens=True)
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
            )
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)
            pieces.end()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield from pieces
    finally:
        stop.asked.set()
        worker.join()
    if failure:
        raise failure[0]
