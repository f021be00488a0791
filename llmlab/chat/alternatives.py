"""Why an answer is what it is: the model's own probabilities of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from llmlab.chat.choices import Choice
from llmlab.data.rendering import decode
from llmlab.models.typed import LanguageModel


def choices(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    count: int,
    **arguments: float,
) -> list[Choice]:
    """Returns each token of an answer with the likeliest in its place, by one pass of the model.

    Args:
        model: that said it.
        tokenizer: its own.
        prompt_ids: tokens that it read.
        answer_ids: tokens that it said.
        count: of the likeliest that are returned.
        **arguments: of the model's `forward` (the alignment of a dual head).
    """
    apart = model.config.is_encoder_decoder
    read = list(prompt_ids)
    with torch.no_grad():
        if apart:
            start = model.generation_config.decoder_start_token_id
            inputs = {"input_ids": _row(read, model), "decoder_input_ids": _row([start, *answer_ids], model)}
            logits = model(**inputs).logits[0, : len(answer_ids)]
        else:
            outputs = model(input_ids=_row([*read, *answer_ids], model), **arguments)
            logits = outputs.logits[0, len(read) - 1 : -1]
    probabilities = logits.float().softmax(-1)  # (answer tokens, vocabulary)
    best = probabilities.topk(min(count, probabilities.shape[-1]), dim=-1)

    def text(token: int) -> str:
        return decode(tokenizer, [token])

    return [
        Choice(
            text(token),
            probabilities[place, token].item(),
            tuple(
                (text(other), value)
                for other, value in zip(
                    best.indices[place].tolist(), best.values[place].tolist(), strict=True
                )
            ),
        )
        for place, token in enumerate(answer_ids)
    ]


def _row(ids: list[int], model: LanguageModel) -> torch.Tensor:
    return torch.tensor([ids], device=model.device)
