"""The plan of a config as a table: what will run, what it needs, before anything starts. No torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rich.table import Table

from llmlab.config import KINDS, DualHeadConfig, LabBaseConfig, ModelConfig, PretrainConfig, load_config
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.models.headers import checkpoint_shape
from llmlab.planning.advice import verdict, warnings, ways_to_fit
from llmlab.planning.dual_head import dual_head_rows
from llmlab.planning.live import available_memory
from llmlab.planning.memory import checkpoint_bytes, predicted
from llmlab.planning.parameters import count_parameters, flops_per_token, kv_cache_bytes_per_token
from llmlab.planning.units import size


def plan_table(config: LabBaseConfig) -> Table:
    """Returns what a config will cost, as far as it is known without loading anything.

    Raises:
        LabError: when the model config that it names cannot be read.
    """
    table = Table(title=KINDS[config.kind].TITLE, show_header=False, title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in plan_rows(config):
        table.add_row(name, value)
    return table


def plan_rows(config: LabBaseConfig) -> list[tuple[str, str]]:
    """Returns (what, how much) of a config's plan."""
    if isinstance(config, ModelConfig):
        return model_rows(config)
    rows = []
    if isinstance(config, PretrainConfig):
        shape = config.model if isinstance(config.model, ModelConfig) else load_config(config.model)
        if not isinstance(shape, ModelConfig):
            raise LabError(f"is a {shape.kind!r} config, not a model", where=str(config.model))
        rows += model_rows(shape)
        tokens = config.max_steps * config.batch_size * config.gradient_accumulation_steps * shape.max_seq_len
        rows.append(("tokens", f"{tokens:,} in all, {tokens * flops_per_token(shape):.3g} FLOPs"))
    if isinstance(config, TrainingConfig) and (memory := predicted(config)):
        parts = ", ".join(f"{name} {size(value)}" for name, value in memory.parts().items() if value >= 1e6)
        rows.append(
            (
                "memory",
                f"about {size(memory.total)}, {verdict(config)} ({size(available_memory())} free): {parts}",
            )
        )
    if isinstance(config, TrainingConfig) and (needed := checkpoint_bytes(config)):
        target = Path(config.output_dir or ".")
        existing = next(p for p in (target, *target.absolute().parents) if p.exists())
        rows.append(
            ("disk", f"up to {size(needed)} for checkpoints; {size(shutil.disk_usage(existing).free)} free")
        )
    if isinstance(config, DualHeadConfig) and (shape := checkpoint_shape(config.backbone)):
        rows += dual_head_rows(config, shape)
    if isinstance(config, TrainingConfig):
        rows += training_rows(config)
        rows += [("mind", warning) for warning in warnings(config)]
        rows += [("would fit with", words) for words, _ in ways_to_fit(config)]
    return rows


def before_a_run(config: TrainingConfig) -> list[str]:
    """Returns what has to be known before a run begins, a line each: does it fit, and what is worth a second
    thought.

    Raises:
        LabError: when the model config that it names cannot be read.
    """
    return [
        f"{name}: {value}"
        for name, value in plan_rows(config)
        if name in ("memory", "mind", "would fit with")
    ]


def model_rows(config: ModelConfig) -> list[tuple[str, str]]:
    """Returns the figures of an architecture."""
    count = count_parameters(config)
    return [
        ("parameters", f"{count.total:,} ({count.non_embedding:,} without embeddings)"),
        ("weights", f"{size(count.total * 2)} in bf16, {size(count.total * 4)} in fp32"),
        ("KV cache", f"{size(1000 * kv_cache_bytes_per_token(config))} per 1,000 tokens in bf16"),
        ("training", f"{flops_per_token(config):.3g} FLOPs per token at {config.max_seq_len:,} tokens"),
    ]


def training_rows(config: TrainingConfig) -> list[tuple[str, str]]:
    """Returns what every training config says of itself."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batch = config.micro_batch_size * config.accumulation_steps * world
    total = sum(source.weight for source in config.datasets)
    rows = (
        [(config.STARTS_FROM.split("_")[0], str(getattr(config, config.STARTS_FROM)))]
        if config.kind != "pretrain"
        else []
    )
    return [
        *rows,
        (
            "effective batch",
            (
                f"{config.micro_batch_size} x {config.accumulation_steps} x {world} = {batch} (batch x"
                " accumulation x devices)"
            ),
        ),
        ("steps", f"{_steps(config)}, {config.warmup_steps:,} of them warm-up, then {config.scheduler}"),
        (
            "optimizer",
            (
                f"{config.optimizer}, learning rate {config.learning_rate:g}, weight decay"
                f" {config.weight_decay:g}"
            ),
        ),
        ("data", ", ".join(f"{s.line()} ({s.weight / total:.0%})" for s in config.datasets)),
    ]


def _steps(config: TrainingConfig) -> str:
    epochs = getattr(config, "epochs", None)
    return f"those of {epochs:g} epochs, at most {config.max_steps:,}" if epochs else f"{config.max_steps:,}"
