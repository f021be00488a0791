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
    won = 0.0
    for start in range(0, len(pairs), batch_size):
        rows = [tokenized_pair(tokenizer, pair) for pair in pairs[start : start + batch_size]]
        won += sum(one["score"] for one in _by_the_policy(model, tokenizer, rows))
    model.train(was_training)
    return won / max(1, len(pairs))


@torch.no_grad()
def score_pairs(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns of each pair its `score`, 1 where the chosen answer is the likelier one, and what it came from.

    Of a policy, and of a dual head's backbone alone: `log_prob` and `log_prob_rejected`. Of a dual head,
    whose reward head decides: `margin`, log pi_r(chosen) - log pi_r(rejected); and over the tokens of the
    chosen answer, as sums, `fused` and `backbone` (log pi of the fused model and of the one it began as),
    `alpha` and `gate_entropy` (nats). `log_prob` is the fused one.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        rows: tokenized pairs, one batch of them.
    """
    if not isinstance(model, LabDualHeadForCausalLM):
        return _by_the_policy(model, tokenizer, rows)
    if model.alignment == 0:
        return _by_the_policy(model.backbone, tokenizer, rows)
    return _by_the_heads(model, tokenizer, rows)


def _by_the_policy(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    prompts = [row["prompt_ids"] for row in rows]
    chosen, rejected = (
        answer_log_probs(model, prompts, [row[key] for row in rows], tokenizer.pad_token_id or 0)
        .double()
        .tolist()
        for key in ("chosen_ids", "rejected_ids")
    )
    return [
        {
            "score": float(one > other),
            "log_prob": one,
            "log_prob_rejected": other,
            "tokens": len(row["chosen_ids"]),
        }
        for row, one, other in zip(rows, chosen, rejected, strict=True)
    ]


def _by_the_heads(
    model: LabDualHeadForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    collate = DualHeadCollator(tokenizer.pad_token_id or 0, share=False)
    batch = collate([{**row, "chosen_labels": row["chosen_ids"]} for row in rows])
    scores = model(**{name: value.to(model.device) for name, value in batch.items()})
    owner = batch["chosen_row"]
    share = scores.alpha.double().clamp(1e-12, 1 - 1e-12)
    of_tokens = {
        "fused": scores.fused,
        "alpha": scores.alpha,
        "gate_entropy": torch.special.entr(share) + torch.special.entr(1 - share),
    }
    sums = {
        name: torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owner, values.double().cpu())
        for name, values in of_tokens.items()
    }
    counts = torch.bincount(owner, minlength=len(rows)).tolist()
    prompts, chosen = ([row[name] for row in rows] for name in ("prompt_ids", "chosen_ids"))
    own = answer_log_probs(model.backbone, prompts, chosen, tokenizer.pad_token_id or 0).double().tolist()
    return [
        {
            "score": float(margin > 0),
            "log_prob": float(sums["fused"][place]),
            "tokens": counts[place],
            "margin": margin,
            "backbone": own[place],
            **{name: float(values[place]) for name, values in sums.items()},
        }
        for place, margin in enumerate(scores.margin.double().tolist())
    ]


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
    found: list[dict[str, Any]] = []
    with torch.no_grad():
        for start in range(0, len(pairs), batch_size):
            rows = [tokenized_pair(tokenizer, pair) for pair in pairs[start : start + batch_size]]
            found += _by_the_heads(model, tokenizer, rows)
    model.train(was_training)
    tokens = max(1, sum(one["tokens"] for one in found))

    def mean(name: str) -> float:
        return float(math.fsum(one[name] for one in found) / tokens)

    return {
        "preference_accuracy": sum(one["score"] for one in found) / len(found),
        "perplexity": math.exp(-mean("fused")),
        "backbone_perplexity": math.exp(-mean("backbone")),
        "alpha": mean("alpha"),
        "gate_entropy": mean("gate_entropy"),
    }


def tokenized_pair(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> dict[str, Any]:
    """Returns `prompt_ids`, `chosen_ids` and `rejected_ids` of a pair."""
    prompt, chosen, rejected = pair
    turns = user(prompt) if isinstance(prompt, str) else prompt
    return tokenize_pair(tokenizer, turns, chosen, rejected, LONGEST, LONGEST_PROMPT)
