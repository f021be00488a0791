"""What a method gives to the engine, and how a run ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from llmlab.config.training import TrainingConfig
from llmlab.data.pipeline import Prepared
from llmlab.training.engine.reporter import Reporter
from llmlab.training.trainers.base import LabTrainerMixin


@dataclass
class Job:
    """What a method gives to the engine.

    Attributes:
        model: to train, adapters included.
        tokenizer: saved beside it.
        data: training and validation rows.
        arguments: builds the trainer's arguments from those of the engine.
        trainer: builds the trainer from its keyword arguments.
        parent: what it started from, or None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: Prepared
    arguments: Callable[..., TrainingArguments]
    trainer: Callable[..., LabTrainerMixin]
    parent: str | None

    @property
    def parameters(self) -> int:
        """Weights of the model, adapters included."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def trained_parameters(self) -> int:
        """Weights that learn."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


class Prepare(Protocol):
    """Loads model and data of a config: what every module of `training/methods` has as `prepare`.

    Each takes the config of its own kind, which the registry of methods sees to.
    """

    def __call__(self, config: TrainingConfig, device: str, precision: str, reporter: Reporter) -> Job:
        """Returns the job of a run.

        Args:
            config: of the method's kind.
            device: "cpu", "cuda" ...
            precision: "fp32", "bf16" or "fp16".
            reporter: told of work that takes its time.

        Raises:
            LabError: when a model or the data cannot be used.
        """
        ...


@dataclass
class RunResult:
    """How a run ended.

    Attributes:
        folder: of the run.
        model: folder of the resulting model, or None when it was stopped.
        metrics: held-out figures before (`before_...`) and after.
        stopped_by: the number of the signal that stopped it, 0 when it finished.
        seconds: wall time of this call.
    """

    folder: Path
    model: Path | None
    metrics: dict[str, float]
    stopped_by: int
    seconds: float

    def to_json(self) -> str:
        """Returns the result line for machines."""
        return json.dumps(
            {
                "run": str(self.folder),
                "model": str(self.model) if self.model else None,
                "status": "stopped" if self.stopped_by else "done",
                "metrics": self.metrics,
                "seconds": round(self.seconds, 1),
            }
        )


def exit_code(result: RunResult) -> int:
    """Returns 0, or 128 plus the signal that stopped the run."""
    return 128 + result.stopped_by if result.stopped_by else 0
