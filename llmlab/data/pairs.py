"""Pairs of answers as tokens, for DPO, reward models and the dual head, which reads answers alone as well."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.config import DPOConfig, DualHeadConfig, RewardConfig
from llmlab.data.conversations import conversation_tokens
from llmlab.data.pipeline import Prepared, split
from llmlab.data.rendering import tokenize_pair
from llmlab.data.schemas import CONVERSATIONS, InvalidRow, Row
from llmlab.data.tokens import SourceTokens, require_rows, tokenise_sources, tokenizer_hash
from llmlab.errors import LabError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def dpo_data(config: DPOConfig | RewardConfig, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Returns pairs as `prompt_ids`, `chosen_ids` and `rejected_ids`.

    Raises:
        LabError: when a source has no pairs.
    """
    key = {
        "method": "pairs",
        "tokenizer": tokenizer_hash(tokenizer),
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
        "overlong": config.on_overflow,
    }
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    tokens = tokenise_sources(config, ("preference",), partial(pair_tokens, tokenizer, config), key, columns)
    train = tokens.mixed()
    require_rows(train, "no usable pairs", tokens.notes)
    facts = {
        "train_pairs": len(train),
        **tokens.counts(),
        "eval_pairs": sum(len(rows) for rows in tokens.held_out.values()),
    }
    return Prepared(train, tokens.held_out, facts, notes=tokens.notes, sources=tokens.sources)


def dual_head_data(config: DualHeadConfig, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Returns rows of `prompt_ids`, `chosen_ids`, `chosen_labels` and `rejected_ids`, the last empty for
    answers alone.

    Raises:
        LabError: when a source has no rows that the objective learns from.
    """
    needed = ("preference",) if config.objective == "preference" else ("preference", *CONVERSATIONS)
    alone = config.objective == "sft"
    key = {
        "method": "dual head",
        "tokenizer": tokenizer_hash(tokenizer),
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
        "overlong": config.on_overflow,
        "alone": alone,
    }
    columns = ("prompt_ids", "chosen_ids", "chosen_labels", "rejected_ids")
    tokens = tokenise_sources(config, needed, partial(answer_tokens, tokenizer, config, alone), key, columns)
    portions = _portions(config, tokens) if config.objective == "mixed" else None
    train = tokens.mixed(portions)
    require_rows(train, "no usable rows", tokens.notes)
    if config.objective == "mixed" and portions is None:
        lone = split(np.arange(len(train)), config.sft_ratio)
        train = train.map(
            lambda row, index: {**row, "rejected_ids": []} if lone[index] else row,
            with_indices=True,
            keep_in_memory=True,
        )
    facts = {
        "train_rows": len(train),
        **tokens.counts(),
        "eval_rows": sum(len(rows) for rows in tokens.held_out.values()),
    }
    return Prepared(train, tokens.held_out, facts, notes=tokens.notes, sources=tokens.sources)


def _portions(config: DualHeadConfig, tokens: SourceTokens) -> list[float] | None:
    """Returns the share of each source where some hold conversations: these are the answers alone, in the
    share that was asked for. None where all hold pairs.

    Raises:
        LabError: when none holds pairs.
    """
    paired = [bool(len(part.train)) and bool(part.train[0]["rejected_ids"]) for part in tokens.parts]
    if not any(paired):
        raise LabError(
            '`objective` "mixed": no source holds pairs',
            where="datasets",
            remedy='add one, or set `objective` to "sft"',
        )
    if all(paired):
        return None
    weights = [source.weight for source in config.datasets]
    sums = {
        kind: sum(weight for weight, of in zip(weights, paired, strict=True) if of is kind) or 1.0
        for kind in (True, False)
    }
    share = {True: 1 - config.sft_ratio, False: config.sft_ratio}
    return [share[of] * weight / sums[of] for weight, of in zip(weights, paired, strict=True)]


def pair_tokens(
    tokenizer: PreTrainedTokenizerBase, config: DPOConfig | RewardConfig | DualHeadConfig, row: Row
) -> dict[str, Any]:
    """Returns `prompt_ids`, `chosen_ids` and `rejected_ids` of a canonical pair, and whether it was `cut`.

    Raises:
        InvalidRow: when it is too long and to be dropped, or nothing is left that tells the answers apart.
    """
    pair = (row["prompt"], row["chosen"], row["rejected"])
    tokens = tokenize_pair(tokenizer, *pair, config.max_length, config.max_prompt_length)
    truncated = tokens.pop("cut")
    if truncated and config.on_overflow == "drop":
        raise InvalidRow(f"longer than `max_length` {config.max_length}")
    if tokens["chosen_ids"] == tokens["rejected_ids"]:
        raise InvalidRow(
            f"equal answers within `max_length` {config.max_length}"
            if truncated
            else "equal answers after tokenisation"
        )
    return {**tokens, "cut": truncated}


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, config: DualHeadConfig, alone: bool, row: Row
) -> dict[str, Any]:
    """Returns a canonical pair or conversation as the dual head reads it: a conversation has all its turns in
    `chosen_ids`.

    Args:
        tokenizer: with a chat template.
        config: of the run.
        alone: whether a pair's rejected answer is left out.
        row: canonical.

    Raises:
        InvalidRow: when it cannot be used.
    """
    if "chosen" in row:
        tokens = pair_tokens(tokenizer, config, row)
        tokens["chosen_labels"] = list(tokens["chosen_ids"])
        return {**tokens, "rejected_ids": []} if alone else tokens
    tokens = conversation_tokens(tokenizer, config, row)
    return {
        "prompt_ids": [],
        "chosen_ids": tokens["input_ids"],
        "chosen_labels": tokens["labels"],
        "rejected_ids": [],
        "cut": tokens["cut"],
    }
