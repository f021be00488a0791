"""How long a run takes and what it costs: steps, tokens, passes over the data, seconds, money. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmlab.config.schedule import NO_LIMIT
from llmlab.config.suites import watched_tasks
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.planning.machines import Machine
from llmlab.planning.memory import one_checkpoint_bytes
from llmlab.planning.processes import processes_of, replicas_of
from llmlab.planning.speed import Pace, pace_of
from llmlab.planning.work import row_tokens

WRITTEN = 4e8  # bytes a second that saving reaches, checksums included
READ_ALONE = 1 / 3  # of an update's time, what a validation takes for as many rows: the forward pass alone


@dataclass(frozen=True)
class DataSize:
    """How much there is to train on.

    Attributes:
        rows: as a run takes them, packed where it packs.
        tokens: of all of them; None where they are not counted.
    """

    rows: int
    tokens: float | None = None

    @property
    def row(self) -> float | None:
        """Tokens of a row; None where they are not counted."""
        return self.tokens / self.rows if self.tokens and self.rows else None


@dataclass(frozen=True)
class EvaluationsPlan:
    """Evaluations on a suite while the model learns.

    Attributes:
        suite: its name.
        count: how many; None where the steps are not known.
        rows: of each of its tasks, at most; None where its tasks do not say.
        seconds: of one, as it was measured; None where it was not.
    """

    suite: str
    count: int | None
    rows: tuple[int | None, ...]
    seconds: float | None


@dataclass(frozen=True)
class TimePlan:
    """How long a run is.

    Attributes:
        steps: updates; None where they follow from rows that are not counted yet.
        tokens: that it reads in all; None where they are not known.
        passes: over the data; None where the rows are not counted.
        pace: of an update; None where nothing is known of model or device.
        seconds: from the first update to the last, validations included; None where they are not known.
        cost: of the devices, in the currency of `price_per_hour`; None where no price is given.
        evaluations: on the suite, whose time is among the seconds where it is known; None without a suite.
    """

    steps: int | None
    tokens: float | None = None
    passes: float | None = None
    pace: Pace | None = None
    seconds: float | None = None
    cost: float | None = None
    evaluations: EvaluationsPlan | None = None


def time_plan(
    config: TrainingConfig, data: DataSize | None = None, machine: Machine | None = None
) -> TimePlan:
    """Returns how long a run is, as far as it is known.

    Args:
        config: of the run.
        data: to train on; left out, passes are not known, nor steps where the run counts in epochs.
        machine: that it is planned for; left out, this one.
    """
    replicas = replicas_of(config)
    steps, passes = _length(config, data, replicas)
    pace = pace_of(config, machine, row=data.row if data else None)
    tokens = steps * pace.tokens if steps and pace else None
    if pace is None and steps and (longest := row_tokens(config)):
        tokens = float(steps * config.micro_batch_size * config.accumulation_steps * replicas * longest)
    seconds = _seconds(config, pace, steps, replicas, data) if steps and pace else None
    evaluations = evaluations_plan(config, steps, pace)
    if evaluations and seconds is not None:
        seconds += (evaluations.count or 0) * (evaluations.seconds or 0.0)
    price = config.price_per_hour
    hours = None if seconds is None else seconds / 3600 * processes_of(config)
    cost = None if hours is None or price is None else hours * price
    return TimePlan(steps, tokens, passes, pace, seconds, cost, evaluations)


def evaluations_plan(config: TrainingConfig, steps: int | None, pace: Pace | None) -> EvaluationsPlan | None:
    """Returns the evaluations on the suite of a run; None where it has none, or one that cannot be read."""
    if not config.evaluation_suite:
        return None
    try:
        tasks = watched_tasks(config)
    except LabError:  # said where it is looked for
        return None
    # before the first step, after every so many, after the last one
    count = None if steps is None else 1 + math.ceil(steps / config.evaluate_interval)
    rows = tuple(task.source.max_rows for task in tasks)
    return EvaluationsPlan(config.evaluation_suite, count, rows, pace.evaluation if pace else None)


def _length(config: TrainingConfig, data: DataSize | None, replicas: int) -> tuple[int | None, float | None]:
    """Returns updates and passes over the data."""
    if data is None or not data.rows:
        return (config.max_steps if config.max_steps < NO_LIMIT else None), config.epochs
    steps = config.at_length(data.rows, replicas).get("max_steps", config.max_steps)
    return steps, steps / config.steps_of_a_pass(data.rows, replicas)


def _held_out(config: TrainingConfig, data: DataSize | None) -> int:
    """Returns the rows that a validation reads."""
    if data is None or config.eval_datasets:
        return config.eval_rows
    share = config.eval_fraction
    return min(config.eval_rows, math.ceil(data.rows * share / (1 - share)))


def _seconds(config: TrainingConfig, pace: Pace, steps: int, replicas: int, data: DataSize | None) -> float:
    """Returns the seconds of all updates, validations and checkpoints."""
    seconds = steps * pace.update + _saving(config, pace, steps)
    if not (config.eval_datasets or config.eval_fraction):
        return seconds
    # one before the first update, one at each interval, one after the last update
    validations = 1 + math.ceil(steps / config.eval_interval)
    rows = config.micro_batch_size * config.accumulation_steps * replicas
    one = READ_ALONE * pace.update * _held_out(config, data) / rows
    if pace.validation is not None:
        one = pace.validation
    return seconds + validations * one


def _saving(config: TrainingConfig, pace: Pace, steps: int) -> float:
    """Returns the seconds of all checkpoints, one at each interval and one at the end."""
    one = pace.saving if pace.saving is not None else one_checkpoint_bytes(config) / WRITTEN
    return math.ceil(steps / config.save_interval) * one
