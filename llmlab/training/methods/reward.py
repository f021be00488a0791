"""Reward models: a scalar head on a checkpoint, trained on pairs (Ouyang et al. 2022, eq. 1), through TRL.

loss = -log sigmoid(r(x, y+) - r(x, y-)) + c (r(x, y+) + r(x, y-))^2
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from trl.trainer.reward_config import RewardConfig as Arguments

from llmlab.config import RewardConfig
from llmlab.data.pairs import dpo_data
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.models.adapters import add_adapter
from llmlab.models.load import load_scorer
from llmlab.models.policy import loading_kwargs
from llmlab.models.resolve import resolve_model
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Reporter
from llmlab.training.trainers.reward import RewardTrainer


def prepare(config: RewardConfig, device: str, precision: str, reporter: Reporter) -> Job:
    """Returns the job of a reward run.

    Raises:
        LabError: when the checkpoint or the data do not load.
    """
    start = resolve_model(config.policy_checkpoint)
    tokenizer = load_tokenizer(start.where)
    ensure_chat_template(tokenizer)
    data = dpo_data(config, tokenizer)
    data.train, data.eval = (
        whole_rows(data.train),
        {name: whole_rows(rows) for name, rows in data.eval.items()},
    )
    torch.manual_seed(config.seed)  # of the new head
    model = load_scorer(start, pad=tokenizer.pad_token_id, **loading_kwargs(config, device, precision))
    model = add_adapter(model, config, task="SEQ_CLS")
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=data,
        arguments=partial(
            Arguments,
            max_length=config.max_length,
            center_rewards_coefficient=config.center_rewards or None,
        ),
        trainer=partial(RewardTrainer, adapter_dropout=config.adapter_dropout),
        parent=start.where,
    )


def whole_rows(rows: Any) -> Any:
    """Returns pairs as two whole conversations each,
    `chosen_ids` and `rejected_ids` with the prompt before them.
    """
    mapped = rows.map(
        lambda row: {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")},
        remove_columns=["prompt_ids"],
    )
    return mapped
