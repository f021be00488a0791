"""What the updates of a run take, kept for the plans of later runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.config.training import TrainingConfig
from llmlab.planning import speed
from llmlab.planning.processes import replicas_of
from llmlab.planning.work import work_of
from llmlab.runs.figures import is_of_suite


class KeepSpeed(TrainerCallback):
    """Times updates, validations and checkpoints; keeps them in the lab's cache folder when training ends.

    It has to come behind the other callbacks, whose time belongs to what they follow.

    Args:
        config: of the run, with the batches that it really takes.
        since_start: returns the seconds since the run was asked for.
    """

    def __init__(self, config: TrainingConfig, since_start: Callable[[], float]):
        self.config, self.since_start = config, since_start
        self.updates: list[float] = []
        self.validations: dict[int, float] = {}  # by step; of several sources together
        self.evaluations: list[float] = []
        self.saves: list[float] = []
        self._mark = 0.0
        self._began = 0, 0
        self._start = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Starts the clock."""
        self._start, self._mark = self.since_start(), time.perf_counter()
        self._began = state.global_step, int(state.num_input_tokens_seen)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Takes the time of an update."""
        self.updates.append(self._since())

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Takes the time of a validation, or of one of its sources, or of an evaluation on the suite."""
        if any(map(is_of_suite, metrics or {})):
            self.evaluations.append(self._since())
            return
        step = state.global_step
        self.validations[step] = self.validations.get(step, 0.0) + self._since()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Takes the time of a checkpoint."""
        self.saves.append(self._since())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Keeps what was measured, where there was enough."""
        update = speed.measured_update(self.config, self.updates)
        longest = work_of(self.config)
        if update is None or longest is None or not state.is_world_process_zero:
            return
        step, seen = self._began
        tokens = (int(state.num_input_tokens_seen) - seen) / max(1, state.global_step - step)
        rows = self.config.micro_batch_size * self.config.accumulation_steps * replicas_of(self.config)
        work = work_of(self.config, row=tokens / rows) if tokens else longest
        assert work is not None
        values = list(self.validations.values())
        validation = sum(values) / len(values) if values else None
        speed.record(
            self.config,
            speed.SpeedRecord(
                speed.setting_of(self.config),
                update,
                work.tokens,
                work.flops,
                validation,
                self._start if step == 0 else None,
                time.time(),
                {speed.suite_of(self.config): fmean(self.evaluations)} if self.evaluations else {},
                *speed.expected(self.config, work),
                sum(self.saves) / len(self.saves) if self.saves else None,
            ),
        )

    def _since(self) -> float:
        """Returns the seconds since the last event."""
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        return passed
