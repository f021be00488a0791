"""What a run says of itself before it trains, on the screen and in its record."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from llmlab import __version__
from llmlab.config.sources import shares, short_names
from llmlab.models.load import attention_in_use
from llmlab.training.engine.arguments import effective_batch
from llmlab.training.engine.context import RunContext
from llmlab.training.engine.job import Job

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "pytorch-optimizer")


def announce(context: RunContext, job: Job, forecast: list[str]) -> None:
    """Shows what will be trained on what, and the lines that were forecast of memory and time."""
    config, console = context.config, context.console
    trained, total = job.trained_parameters, job.parameters
    share = f"{total:,} parameters" + (
        f", {trained:,} trained ({trained / total:.2%})" if trained != total else ""
    )
    facts = ", ".join(
        f"{key.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{key} {value}"
        for key, value in job.data.facts.items()
    )
    how = f"on {context.device} in {context.precision}, {attention_in_use(job.model)} attention"
    console.print(
        f"{share} {how}; effective batch {effective_batch(config)} (batch x accumulation x devices)"
    )
    console.print(f"data: {facts}", highlight=False)
    for name, rows in job.data.eval.items():
        which = (
            f"all {len(rows):,}"
            if len(rows) <= config.eval_rows
            else f"the first {config.eval_rows:,} of {len(rows):,}"
        )
        of = f" of {name}" if len(job.data.eval) > 1 else ""
        console.print(f"validation: {which} held-out rows{of}", highlight=False)
    for note in job.data.notes:
        console.print(note, style="yellow", highlight=False)
    if len(config.datasets) > 1:
        parts = zip(short_names(config.datasets), shares(config.datasets), strict=True)
        console.print("mixture: " + ", ".join(f"{name} {share:.1%}" for name, share in parts))
    for line in forecast:
        style = "" if line.startswith("memory") else "yellow"
        console.print(line, style=style, highlight=False, soft_wrap=not console.is_terminal)


def run_facts(context: RunContext, job: Job) -> dict[str, Any]:
    """Returns what the run's record says beside its options."""
    config = context.config
    return {
        "planned_steps": config.max_steps,
        "llmlab": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": context.device,
        "precision": context.precision,
        "attention": attention_in_use(job.model),
        "parameters": job.parameters,
        "trained_parameters": job.trained_parameters,
        "data": job.data.facts,
        "data_notes": job.data.notes,
        "validation_rows": {name: min(config.eval_rows, len(rows)) for name, rows in job.data.eval.items()},
        "parent": job.parent,
        "seed": config.seed,
    }


def bytes_written(context: RunContext, job: Job) -> int:
    """Returns about how much a run writes: checkpoints of weights and two moments, and two models."""
    saved = 4 * job.trained_parameters
    return saved * 3 * (context.config.save_total_limit + 1) + 2 * saved
