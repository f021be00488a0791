"""The folder of a run: how it is named, and which folders it could go to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from llmlab.config import ModelConfig, PretrainConfig
from llmlab.config.sources import mixture_name
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.runs.checkpoint import Checkpoint
from llmlab.runs.folder import RUNS, run_name


def candidate_folders(config: TrainingConfig, resume: str) -> Iterator[Path]:
    """Yields the folders that a run could go to: the one that was named, then `RUN-2`, `RUN-3` ...

    Raises:
        LabError: when what was named is no checkpoint or no folder.
    """
    if resume not in ("auto", "never"):
        named = Path(resume)
        if resume in ("latest", "last", "newest") and not named.is_dir():
            raise LabError(
                f"`--resume {resume}` is not known",
                remedy="`--resume auto`, the default, uses the newest checkpoint",
            )
        if not named.is_dir():
            raise LabError(
                "there is no such checkpoint",
                where=resume,
                remedy="name a run or one of its checkpoints; auto uses the newest",
            )
        yield named.parent if Checkpoint.at(named) else named
        return
    first = (
        Path(config.output_dir) if config.output_dir else RUNS / (config.name or run_name(name_parts(config)))
    )
    if first.exists() and not first.is_dir():
        raise LabError("is a file, not a folder", where=str(first), remedy="choose another `output_dir`")
    yield first
    yield from (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))


def name_parts(config: TrainingConfig) -> list[str]:
    """Returns model, data and kind, for the name of a run."""
    if isinstance(config, PretrainConfig) and config.init_from is None:
        shape = config.model
        model = (
            f"{shape.d_model}x{shape.n_layers}" if isinstance(shape, ModelConfig) else Path(str(shape)).stem
        )
    else:
        model = model_name(getattr(config, config.STARTS_FROM))
    return [model, mixture_name(config.datasets), config.kind]


def model_name(checkpoint: str) -> str:
    """Returns a short name of a checkpoint's model."""
    path = Path(checkpoint).resolve() if Path(checkpoint).exists() else Path(checkpoint)
    run = path.parent.name if path.name in ("best", "final") else path.stem
    return run.split("_")[0]  # the names of runs begin with the model
