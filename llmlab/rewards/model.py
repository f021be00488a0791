"""What a reward model says of conversations."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmlab.data.rendering import render
from llmlab.data.schemas import Messages


@torch.no_grad()
def scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[Messages],
    *,
    batch_size: int = 32,
) -> list[float]:
    """Returns the score of each conversation (a prompt and an answer), as text in the reward model's own
    template and tokens.

    Encoder reward models without a template read prompt and answer as a pair of texts.
    """
    model.eval()
    result: list[float] = []
    limit = (
        getattr(model.config, "max_position_embeddings", None)
        or getattr(model.config, "max_seq_len", None)
        or 4096
    )
    for start in range(0, len(conversations), batch_size):
        part = conversations[start : start + batch_size]
        if tokenizer.chat_template:
            texts = [render(tokenizer, turns).rstrip("\n") for turns in part]
            encoded = tokenizer(
                texts,
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=limit,
                add_special_tokens=False,
                return_tensors="pt",
            )
        else:
            prompts = ["\n".join(turn["content"] for turn in turns[:-1]) for turns in part]
            answers = [turns[-1]["content"] for turns in part]
            encoded = tokenizer(
                prompts, answers, padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )
        inputs = {
            name: value.to(model.device)
            for name, value in encoded.items()
            if name != "token_type_ids" or value.any()
        }
        result += model(**inputs).logits[:, 0].float().tolist()
    return result
