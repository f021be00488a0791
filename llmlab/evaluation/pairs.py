"""Preference accuracy: how often a model finds the chosen answer likelier than the rejected one;
and what a dual head does.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llmlab.data.dual_head import DualHeadCollator
from llmlab.data.rendering import tokenize_pair
from llmlab.data.schemas import user
from llmlab.models import LabDualHeadForCausalLM
from llmlab.models.log_probs import answer_log_probs
from llmlab.models.typed import LanguageModel

Pair = tuple[Any, str, str]  # prompt (a text, or messages), chosen, rejected
LONGEST, LONGEST_PROMPT = 4096, 2048  # tokens


def preference_accuracy(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[Pair],
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
        batch = _tokens(tokenizer, pairs[start : start + batch_size])
        prompts = [row["prompt_ids"] for row in batch]
        chosen, rejected = (
            answer_log_probs(model, prompts, [row[key] for row in batch], tokenizer.pad_token_id)
            for key in ("chosen_ids", "rejected_ids")
        )
        won += int((chosen > rejected).sum())
    model.train(was_training)
    return won / max(1, len(pairs))


@torch.no_grad()
def dual_head_figures(
    model: LabDualHeadForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[Pair],
    *,
    batch_size: int = 64,
) -> dict[str, float]:
    """Returns what the heads and the gate of a dual head do on pairs.

    `preference_accuracy` is the reward head's: the share of pairs with log pi_r(chosen) > log pi_r(rejected).
    `perplexity` is that of the fused model on the chosen answers, `backbone_perplexity` that of the model it
    began as. `alpha` and `gate_entropy` (in nats) are means over those answers' tokens.
    """
    was_training = model.training
    model.eval()
    collate = DualHeadCollator(tokenizer.pad_token_id or 0, share=False)
    won, tokens, fused, own, alpha, entropy = 0, 0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, len(pairs), batch_size):
        rows = [
            {**row, "chosen_labels": row["chosen_ids"]}
            for row in _tokens(tokenizer, pairs[start : start + batch_size])
        ]
        scores = model(**{name: value.to(model.device) for name, value in collate(rows).items()})
        won += int((scores.margin > 0).sum())
        tokens += len(scores.fused)
        fused += float(scores.fused.sum())
        alpha += float(scores.alpha.sum())
        share = scores.alpha.double().clamp(1e-12, 1 - 1e-12)
        entropy += float(torch.special.entr(share).sum() + torch.special.entr(1 - share).sum())
        prompts, chosen = ([row[name] for row in rows] for name in ("prompt_ids", "chosen_ids"))
        own += float(answer_log_probs(model.backbone, prompts, chosen, tokenizer.pad_token_id or 0).sum())
    model.train(was_training)
    return {
        "preference_accuracy": won / max(1, len(pairs)),
        "perplexity": math.exp(-fused / max(1, tokens)),
        "backbone_perplexity": math.exp(-own / max(1, tokens)),
        "alpha": alpha / max(1, tokens),
        "gate_entropy": entropy / max(1, tokens),
    }


def _tokens(tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]) -> list[dict[str, Any]]:
    return [
        tokenize_pair(
            tokenizer,
            user(prompt) if isinstance(prompt, str) else prompt,
            chosen,
            rejected,
            LONGEST,
            LONGEST_PROMPT,
        )
        for prompt, chosen, rejected in pairs
    ]
