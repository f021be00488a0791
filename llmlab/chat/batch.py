"""Many prompts at once: the same answers as one at a time, as far as the arithmetic allows.

Prompts stand at the right of their batch, each with positions from 0, its own room and its own random
numbers. What is left is rounding: matrix products of other shapes round otherwise, about 1e-6 in fp32, so
that two tokens which are equally likely to that digit may change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from llmlab.chat.generation import (
    Encoded,
    failed,
    generation_config,
    model_arguments,
    repetition_penalty,
)
from llmlab.config.chat import ChatSettings
from llmlab.data.rendering import decode_answer
from llmlab.errors import LabError
from llmlab.models.typed import LanguageModel

MOST = 64  # rows of a batch: beyond it a step takes longer by about what it answers more
SHARE = (
    0.5  # of the free memory that a batch may take: the estimate leaves out what kernels need for a moment
)


@dataclass(frozen=True)
class Answered:
    """An answer.

    Attributes:
        text: of it, without what ends it.
        finish_reason: "stop" where the model ended it, "length" where it was cut.
        tokens: of it, the end token included.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int


class _Room(StoppingCriteria):
    """Ends each row where its own room does.

    Args:
        ends: length of a row, prompt and padding included, at which it ends, (B,).
    """

    def __init__(self, ends: Tensor):
        self.ends = ends

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return self.ends <= input_ids.shape[1]


@torch.no_grad()
def answer_batch(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Encoded],
    rows: Sequence[int],
    settings: ChatSettings,
) -> list[Answered]:
    """Returns the answers to prompts, in their order.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        prompts: as tokens.
        rows: their numbers, by which they are drawn where `settings` has a seed.
        settings: how it answers.

    Raises:
        MemoryError: when the batch does not fit.
        LabError: when the model fails otherwise.
    """
    config = generation_config(model, tokenizer, settings, max(one.room for one in prompts), rows)
    apart = model.config.is_encoder_decoder
    longest = max(len(one.ids) for one in prompts)
    ids = torch.full((len(prompts), longest), int(config.pad_token_id or 0))
    mask = torch.zeros_like(ids)
    for row, one in enumerate(prompts):
        # an encoder's positions count from its first token; a decoder goes on behind its last one
        place = slice(0, len(one.ids)) if apart else slice(longest - len(one.ids), longest)
        ids[row, place], mask[row, place] = torch.tensor(one.ids), 1
    start = 1 if apart else longest
    room = torch.tensor([one.room for one in prompts], device=model.device)
    padding = None if apart else longest - mask.sum(dim=1)
    try:
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([_Room(room + start)]),
            logits_processor=repetition_penalty(
                settings, None if padding is None else padding.to(model.device)
            ),
            **model_arguments(model, settings),
        )
    except Exception as error:  # torch and the libraries raise many kinds
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise error if isinstance(error, LabError) else failed(error, model) from error
    ends = config.eos_token_id
    return [
        _answered(tokenizer, written[: one.room], ends)
        for one, written in zip(prompts, out[:, start:].tolist(), strict=True)
    ]


def _answered(
    tokenizer: PreTrainedTokenizerBase, written: list[int], ends: list[int] | int | None
) -> Answered:
    closing = {ends} if isinstance(ends, int) else set(ends or ())
    last = next((place for place, token in enumerate(written) if token in closing), None)
    own = written if last is None else written[: last + 1]
    return Answered(decode_answer(tokenizer, own, ends), "length" if last is None else "stop", len(own))


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the device or the machine was full."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def rows_that_fit(config: PreTrainedConfig, tokens: int, value_bytes: int, free: int) -> int:
    """Returns how many rows a batch may have, a power of two, at most `MOST`.

    Args:
        config: of the model.
        tokens: of a prompt with its answer.
        value_bytes: of a number of the keys and values.
        free: bytes.
    """
    text = config.get_text_config(decoder=True)
    layers: int = getattr(text, "num_hidden_layers", None) or 32
    heads: int = getattr(text, "num_attention_heads", None) or 32
    width: int = getattr(text, "hidden_size", None) or 4096
    head_width: int = getattr(text, "head_dim", None) or width // heads
    kv_heads: int = getattr(text, "num_key_value_heads", None) or heads
    cache = 2 * layers * kv_heads * head_width * value_bytes
    # beside the cache: a layer's activations of the prompt, the scores of its attention where no kernel saves
    # them, and the last logits in fp32 with their sorted copies
    row: int = tokens * (cache + 12 * width * value_bytes) + 24 * text.vocab_size
    rows = int(free * SHARE) // max(1, row)
    return 1 << max(0, min(rows, MOST).bit_length() - 1)
