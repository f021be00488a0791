"""What evaluates the model of a run while it learns: a protocol, and the records that it carries.

Training does not import evaluation: the caller of `run` hands an `Evaluator` in (`llmlab.evaluation.watching`
has it), which makes a `SuiteEvaluation` of the loaded model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from llmlab.config.evaluation import Task
from llmlab.config.suites import watched_tasks
from llmlab.config.training import TrainingConfig
from llmlab.config.watching import Better
from llmlab.data.local import contents_hash
from llmlab.errors import LabError
from llmlab.models.typed import LanguageModel
from llmlab.runs.evaluations import SuiteFigure
from llmlab.runs.figures import SUITE
from llmlab.runs.workers import Workers


class SuiteEvaluation(Protocol):
    """A suite that is ready for the model of a run."""

    @property
    def answers(self) -> int:
        """Answers that one evaluation takes."""
        ...

    def measure(
        self, folder: Path, model: str, workers: Workers, tell: Callable[[str, int, int], None]
    ) -> Sequence[SuiteFigure]:
        """Returns the figures of the model as it is now; every process has to call this.

        Args:
            folder: for the answers and the record; what is complete there is not answered again.
            model: its name in the record.
            workers: that share the work.
            tell: takes source, answers that are there, all of them.

        Raises:
            LabError: when the model fails at it, or the answers cannot be written.
        """
        ...


class Evaluator(Protocol):
    """Evaluates the models of runs on suites."""

    def metrics(self, config: TrainingConfig) -> Mapping[str, Better | None]:
        """Returns the figures that the suite of a run gives, as `source/figure`, and which values are better;
        None where they are neither good nor bad.

        Raises:
            LabError: when there is no such suite, or its rows cannot be read or not be measured in a run.
        """
        ...

    def prepare(
        self, config: TrainingConfig, model: LanguageModel, tokenizer: PreTrainedTokenizerBase
    ) -> SuiteEvaluation:
        """Returns the suite of a run made ready for its model.

        Raises:
            LabError: when this model cannot be measured on it.
        """
        ...


def chosen_metric(config: TrainingConfig, offered: Mapping[str, Better | None]) -> str:
    """Returns the logged figure that the best weights of a run are chosen by.

    Args:
        config: of the run.
        offered: figures of its suite.

    Raises:
        LabError: when the suite has no such figure, several, or one that is neither good nor bad.
    """
    wanted = config.suite_metric
    if not wanted:
        return config.metric_for_best or next(iter(config.METRICS))
    names = [name for name in offered if wanted in (name, name.rsplit("/", 1)[-1])]
    usable = ", ".join(name for name, better in offered.items() if better)
    if len(names) > 1:
        raise LabError(
            f"`metric_for_best` {wanted!r} is a figure of several tasks",
            remedy=f"say which: {', '.join(names)}",
        )
    if not names:
        raise LabError(
            f"`metric_for_best` {wanted!r} is no figure of `evaluation_suite` {config.evaluation_suite!r}",
            remedy=f"use one of {usable}, or {', '.join(config.METRICS)}",
        )
    if offered[names[0]] is None:
        raise LabError(f"`metric_for_best` {wanted!r} is neither good nor bad", remedy=f"use one of {usable}")
    return SUITE + names[0]


def suite_read(config: TrainingConfig) -> dict[str, str]:
    """Returns a hash of each task of a run's suite, its rows included where they lie on this machine; what is
    wrong with one is said when it is read.
    """
    tasks: list[Task] = []
    with suppress(LabError):
        tasks = watched_tasks(config)
    found = {}
    for number, task in enumerate(tasks):
        rows = ""
        with suppress(LabError, OSError):
            rows = contents_hash(task.source)
        how = json.dumps(task.to_json_dict(), sort_keys=True)
        found[f"{number} {task.source.name}"] = hashlib.sha256(f"{how} {rows}".encode()).hexdigest()
    return found


def refuse_engine(config: TrainingConfig, engine: str) -> None:
    """Refuses a suite where no process has the whole model.

    Raises:
        LabError: with what to do instead.
    """
    if config.evaluation_suite and engine in ("fsdp2", "zero3", "tensor"):
        how = "tensor parallel" if engine == "tensor" else engine
        raise LabError(
            f"`evaluation_suite` answers with the whole model, which no process has under {how}",
            remedy="leave it out and evaluate the checkpoints (`llmlab evaluate RUN/checkpoint-N --suite"
            ' NAME`), or set `parallel` to "ddp" or "zero2"',
        )
