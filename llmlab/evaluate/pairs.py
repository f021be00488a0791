"""Preference accuracy: how often a model finds the chosen answer likelier than the rejected one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmlab.data.render import tokenize_pair
from llmlab.data.shapes import user


@torch.no_grad()
def answer_log_probs(model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]], pad_token_id: int) -> Tensor:
    """Returns log pi(y|x), the sum over the answer's tokens alone, for each pair of prompt and answer, (N,)."""
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
    said = torch.zeros_like(mask, dtype=torch.bool)
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        said[index, len(prompt) : len(row)] = True
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    log_probs = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return (log_probs * said[:, 1:]).sum(dim=1)


def preference_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[Any, str, str]],
    *,
    batch_size: int = 64,
) -> float:
    """Returns the share of (prompt, chosen, rejected) with log pi(chosen|prompt) > log pi(rejected|prompt).

    A prompt is a text or a list of messages.
    """
    was_training = model.training
    model.eval()
    won = 0
    for start in range(0, len(pairs), batch_size):
        made = [
            tokenize_pair(tokenizer, user(prompt) if isinstance(prompt, str) else prompt, chosen, rejected, 4096, 2048)
            for prompt, chosen, rejected in pairs[start : start + batch_size]
        ]
        prompts = [row["prompt_ids"] for row in made]
        chosen, rejected = (
            answer_log_probs(model, prompts, [row[key] for row in made], tokenizer.pad_token_id)
            for key in ("chosen_ids", "rejected_ids")
        )
        won += int((chosen > rejected).sum())
    model.train(was_training)
    return won / max(1, len(pairs))
