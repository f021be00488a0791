"""What a run says of itself before it trains: to its reporter and in its record."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from datasets import Dataset

from llmlab import __version__
from llmlab.config.sources import shares, short_names
from llmlab.config.training import TrainingConfig
from llmlab.data.size import LOOKED_AT, padded_mean
from llmlab.data.stream import PackedStream
from llmlab.models.device import attention_chosen_by, attention_in_use, hardware_name
from llmlab.planning.data_size import UNLIMITED, packs
from llmlab.planning.duration import DataSize
from llmlab.planning.plan import Plan
from llmlab.planning.work import row_tokens
from llmlab.training.engine.arguments import effective_batch
from llmlab.training.engine.context import RunContext
from llmlab.training.engine.evaluator import SuiteEvaluation
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Outline, SuiteOutline, Validation

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "pytorch-optimizer")


def outline(context: RunContext, job: Job, plan: Plan, suite: SuiteEvaluation | None = None) -> Outline:
    """Returns what will be trained and evaluated on what; `plan` was made before anything was loaded."""
    config = context.config
    names = zip(short_names(config.datasets), shares(config.datasets), strict=True)
    attention = attention_in_use(job.model)
    return Outline(
        parameters=job.parameters,
        trained_parameters=job.trained_parameters,
        device=context.device,
        precision=context.precision,
        attention=attention,
        attention_by=attention_chosen_by(config, context.device, attention),
        batch=effective_batch(config),
        data=job.data.facts,
        validation=tuple(
            Validation(name, min(config.eval_rows, len(rows)), len(rows))
            for name, rows in job.data.eval.items()
        ),
        notes=tuple(job.data.notes),
        mixture=tuple(names) if len(config.datasets) > 1 else (),
        plan=plan,
        suite=SuiteOutline(str(config.evaluation_suite), suite.answers, config.evaluate_interval)
        if suite
        else None,
    )


def counted(config: TrainingConfig, job: Job) -> DataSize | None:
    """Returns how much there is to train on; None of a stream."""
    rows = job.data.train
    if isinstance(rows, PackedStream):
        return None
    tokens = job.data.facts.get("tokens")
    if isinstance(tokens, int):
        return DataSize(len(rows), float(tokens))
    if packs(config) or not (lengths := _lengths(rows)):
        return DataSize(len(rows))
    together = 1 if getattr(config, "padding_free", False) else config.micro_batch_size
    return DataSize(len(rows), padded_mean(lengths, UNLIMITED, together) * len(rows))


def _lengths(rows: Dataset) -> list[int]:
    """Returns the tokens of some rows, of a pair twice those of its longer answer with the prompt; nothing
    where they are not tokenised.
    """
    some = rows.select(range(0, len(rows), max(1, len(rows) // LOOKED_AT)))
    if {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(rows.column_names):
        return [
            2 * (len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])))
            for row in some
        ]
    return [len(ids) for ids in some["input_ids"]] if "input_ids" in rows.column_names else []


def run_facts(context: RunContext, job: Job) -> dict[str, Any]:
    """Returns what the run's record says beside its options."""
    config = context.config
    return {
        "planned_steps": config.max_steps,
        "llmlab": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": context.device,
        "engine": context.sharing.engine,
        "hardware": hardware_name(context.device),
        "precision": context.precision,
        "attention": attention_in_use(job.model),
        "parameters": job.parameters,
        "trained_parameters": job.trained_parameters,
        "data": job.data.facts,
        "data_notes": job.data.notes,
        "data_rows": job.data.sources,
        "validation_rows": {name: min(config.eval_rows, len(rows)) for name, rows in job.data.eval.items()},
        "parent": job.parent,
        "seed": config.seed,
    }


def tracker_facts(context: RunContext, job: Job, plan: Plan) -> dict[str, float | str]:
    """Returns what TensorBoard, trackio and wandb are told of a run beside its figures."""
    total, trained = job.parameters, job.trained_parameters
    rows = effective_batch(context.config).total
    facts: dict[str, float | str] = {
        "parameters": total,
        "trained_parameters": trained,
        "share_trained": trained / total if total else 0.0,
        "rows_per_update": rows,
        "planned_updates": context.config.max_steps,
    }
    if plan.tokens:
        facts["token_budget"] = plan.tokens.tokens
    elif length := row_tokens(context.config):  # at most: rows are taken to be full
        facts["token_budget"] = rows * context.config.max_steps * length
    facts |= {
        "device": hardware_name(context.device) or context.device,
        "precision": context.precision,
        "attention": attention_in_use(job.model),
        "engine": context.sharing.engine,
        "data": ", ".join(short_names(context.config.datasets)),
    }
    facts |= {f"data_{name.replace(' ', '_')}": _plain(value) for name, value in job.data.facts.items()}
    return facts


def _plain(value: object) -> float | str:
    return value if isinstance(value, (int, float)) else str(value)


def bytes_written(context: RunContext, job: Job) -> int:
    """Returns about how much a run writes: checkpoints of weights and two moments, and two models."""
    saved = 4 * job.trained_parameters
    return saved * 3 * (context.config.save_total_limit + 1) + 2 * saved
