"""The evaluations of a trainer: of its held-out rows and, between two updates, of its model on a suite."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llmlab.models.typed import LanguageModel
from llmlab.runs import evaluations
from llmlab.runs.evaluations import SuiteFigure
from llmlab.runs.figures import SUITE, SUITE_SECONDS
from llmlab.runs.folder import RunFolder
from llmlab.runs.workers import Workers
from llmlab.training.callbacks.suite_steps import SuiteSteps
from llmlab.training.engine.evaluator import SuiteEvaluation
from llmlab.training.engine.memory import free_memory
from llmlab.training.engine.reporter import Reporter
from llmlab.training.trainers.validation import HeldOutMixin

if TYPE_CHECKING:
    from llmlab.training.engine.state import TrainerSnapshot
    from llmlab.training.trainers.base import RunServices


@dataclass(frozen=True)
class Watch:
    """What evaluates the model of a run while it learns.

    Attributes:
        suite: ready for the model.
        model: that answers: the one that learns, without what it is wrapped in.
        steps: when.
        workers: the processes that share the work.
        run: the run's folder.
        reporter: is told how far an evaluation is, and what it says.
    """

    suite: SuiteEvaluation
    model: LanguageModel
    steps: SuiteSteps
    workers: Workers
    run: RunFolder
    reporter: Reporter

    def measure(self, step: int) -> tuple[list[SuiteFigure], float]:
        """Returns the figures of the model as it is, and the seconds that they took."""
        began = time.perf_counter()
        place = evaluations.place(self.run.path, step)
        try:
            with undisturbed(self.model):
                name, tell = f"{self.run.path}, step {step}", self.reporter.evaluating
                figures = self.suite.measure(place, name, self.workers, tell)
        finally:
            self.reporter.evaluating("", 0, 0)
            if self.model.device.type == "cuda":
                free_memory()
        return list(figures), time.perf_counter() - began


class WatchedMixin(HeldOutMixin):
    """The evaluations of a trainer, each done again where a stop broke it off.

    Attributes:
        services: of the run.
        snapshot: the run after its last update; None before the first one.
    """

    services: RunServices | None
    snapshot: TrainerSnapshot | None

    def take_snapshot(self, *, eval_due: bool = False) -> None:
        """Notes the state that the run is in."""
        raise NotImplementedError

    def evaluate(
        self,
        eval_dataset: Dataset[Any] | dict[str, Dataset[Any]] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Returns the figures of what is due behind this step: held-out ones, those of the suite; what a stop
        breaks off is done again.
        """
        if eval_dataset is not None:  # one of several sources
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        watch, step = self._watch(), self.state.global_step
        validates = watch.steps.validates(step) if watch else True
        figures: dict[str, float] = {}
        with self._due():
            if validates:
                figures |= super().evaluate(None, ignore_keys, metric_key_prefix)
            if watch and watch.steps.is_due(step):
                figures |= self._evaluate_suite(watch)
        return figures

    def evaluate_at_the_end(self, held_out: str) -> None:
        """Does after the last step what was not done there.

        Args:
            held_out: a held-out figure; "" where no rows are held out.
        """
        if held_out and not self._logged(held_out):
            self._forget(suite=False)
            with self._due():
                super().evaluate()
        watch = self._watch()
        if watch and not self._logged(SUITE):
            self._forget(suite=True)
            with self._due():
                self._evaluate_suite(watch)

    def _forget(self, *, suite: bool) -> None:
        """Drops figures of this step that a run measured behind its checkpoint and was then killed."""
        if self.services and self.is_world_process_zero():
            self.services.run.drop_validation(self.state.global_step, suite=suite)

    @contextmanager
    def _due(self) -> Iterator[None]:
        """Lets a snapshot say that an evaluation is due, until it is done."""
        noted = self.snapshot is not None  # there is none before the first update
        if noted:
            self.take_snapshot(eval_due=True)
        yield
        if noted:
            self.take_snapshot()

    def _watch(self) -> Watch | None:
        return self.services.watch if self.services else None

    def _logged(self, name: str) -> bool:
        """Returns whether a figure whose name begins so was logged here; all processes know the same."""
        step = self.state.global_step
        return any(
            line.get("step") == step and any(key.startswith(name) for key in line)
            for line in self.state.log_history
        )

    def _evaluate_suite(self, watch: Watch) -> dict[str, float]:
        """Returns the figures of the suite, which are logged and told to the callbacks."""
        figures, seconds = watch.measure(self.state.global_step)
        values = {one.logged: one.value for one in figures}
        self._log_beside({**values, SUITE_SECONDS: round(seconds, 3)})
        watch.reporter.evaluated(self.state.global_step, figures, seconds)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, values)
        return values

    def _log_beside(self, values: dict[str, float]) -> None:
        """Logs figures; those of TRL that are summed up for the next line of the training stay there."""
        logs = dict(values)
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)


@contextmanager
def undisturbed(model: LanguageModel) -> Iterator[None]:
    """Lets a model answer, and leaves it and all random generators as they were."""
    modes = [(module, module.training) for module in model.modules()]
    numbers = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        torch.set_rng_state(numbers[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)
