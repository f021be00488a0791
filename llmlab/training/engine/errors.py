"""What may fail while a run trains, and what is said and done about it."""

from __future__ import annotations

from pathlib import Path

import torch

from llmlab.config.loader import apply_changes
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError, ProcessLost
from llmlab.launching.rank_files import RankFiles
from llmlab.readable import shortened


class OutOfMemory(Exception):
    """The device was full in the middle of an update; what was learned before it is in a checkpoint.

    Attributes:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.folder = folder


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the device or the machine was full."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def out_of_memory(folder: Path) -> LabError:
    """Returns the error of a run that did not fit."""
    return LabError(
        "out of memory",
        where=str(folder),
        exit_code=1,
        remedy="lower `batch_size` or `max_length`, set `gradient_checkpointing`, use an adapter, or let"
        ' the lab halve the micro-batch with `out_of_memory` "halve"',
    )


def is_connection_error(error: BaseException) -> bool:
    """Returns whether an error says that another process of the job is gone, or did not come in time."""
    text = str(error).lower()
    gloo = "gloo" in text or "connection closed by peer" in text or "connection reset by peer" in text
    return isinstance(error, torch.distributed.DistError) or gloo


def process_lost(folder: Path, config: TrainingConfig, error: BaseException) -> ProcessLost:
    """Returns the error of a run whose other processes are gone or late; late ones are asked to write down
    what they do.
    """
    late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
    if late:
        RankFiles.of_this_process().ask_others_for_stacks()
    waited = f"a process waited {config.process_timeout} s for the others (`process_timeout`)"
    return ProcessLost(
        waited if late else "lost the connection to another process of the job",
        where=str(folder),
        remedy=f"to resume from the last checkpoint: `llmlab run {folder}`",
        late=late,
    )


def is_compile_error(error: BaseException) -> bool:
    """Returns whether an error comes from torch.compile."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def compile_failed(folder: Path, error: BaseException) -> LabError:
    """Returns the error of a run that torch.compile could not compile."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next(
        (line for line in lines if "rror" in line and "raised" not in line),
        lines[0] if lines else "no reason given",
    )
    return LabError(
        f"torch.compile failed ({shortened(reason, 200)})",
        where=str(folder),
        exit_code=1,
        remedy="set `compile` to false, or install the C++ compiler that torch wants",
    )


def write_failed(folder: Path, error: OSError) -> LabError:
    """Returns the error of a run that could not write."""
    return LabError(
        f"writing failed ({error.strerror})",
        where=str(folder),
        exit_code=1,
        remedy=f"free space; to resume from the last checkpoint: `llmlab run {folder}`",
    )


def halve_micro_batch(config: TrainingConfig, folder: Path) -> TrainingConfig:
    """Returns the config with half the micro-batch and twice the accumulation: the effective batch stays.

    Raises:
        LabError: when a micro-batch is one row already, or is itself the update (PPO).
    """
    name = "mini_batch_size" if "mini_batch_size" in type(config).model_fields else "batch_size"
    size = getattr(config, name)
    if size % 2 or config.kind == "ppo":
        raise LabError(
            f"out of memory with `{name}` {size}, which cannot be halved"
            + (": a mini-batch is an update here" if config.kind == "ppo" else ""),
            where=str(folder),
            exit_code=1,
            remedy="lower `max_length`, set `gradient_checkpointing`, or use an adapter",
        )
    values: dict[str, object] = {name: size // 2, "output_dir": str(folder)}
    if name == "batch_size":
        values["gradient_accumulation_steps"] = config.accumulation_steps * 2
    return apply_changes(config, values)
