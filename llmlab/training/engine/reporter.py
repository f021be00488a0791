"""To whom a run speaks: a protocol of a few calls, and the records that they carry.

Training knows no screen. The dashboard, plain lines and `run.log` implement `Reporter` in `llmlab.ui`, and
the caller of `run` hands one in. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from llmlab.errors import LabError
from llmlab.planning.plan import Plan
from llmlab.runs.evaluations import SuiteFigure

if TYPE_CHECKING:
    from llmlab.models.device import AttentionBy
    from llmlab.training.engine.job import RunResult


class EffectiveBatch(NamedTuple):
    """Rows of an optimizer update, as the product they are."""

    rows: int
    accumulation: int
    processes: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.accumulation} x {self.processes} = {self.total}"

    @property
    def total(self) -> int:
        """Rows of an update."""
        return self.rows * self.accumulation * self.processes


class Validation(NamedTuple):
    """A validation source: its name, how many rows of it are read, and how many are held out."""

    name: str
    read: int
    held_out: int


class SuiteOutline(NamedTuple):
    """A suite that is evaluated while the model learns: its name, how many answers one evaluation takes, and
    after which steps there is one besides those before the first and after the last step.
    """

    name: str
    answers: int
    every: int


@dataclass(frozen=True)
class Outline:
    """What will be trained on what.

    Attributes:
        parameters: weights of the model, adapters included.
        trained_parameters: those that learn.
        device: "cpu", "cuda" ...
        precision: "fp32", "bf16" or "fp16".
        attention: the implementation in use.
        attention_by: how it was chosen: by the "config", by transformers ("auto"), or by what the "selftest"
            of this device found the fastest.
        batch: rows of an update.
        data: facts of the training rows, in words or as counts.
        validation: the held-out rows, by source.
        notes: on the data, one sentence each.
        mixture: (name, share of the rows) of each source, where there are several.
        plan: what was known of memory and of unusual options before anything was loaded.
        suite: that the model is evaluated on while it learns; None for none.
    """

    parameters: int
    trained_parameters: int
    device: str
    precision: str
    attention: str
    attention_by: AttentionBy
    batch: EffectiveBatch
    data: Mapping[str, object]
    validation: tuple[Validation, ...]
    notes: tuple[str, ...]
    mixture: tuple[tuple[str, float], ...]
    plan: Plan
    suite: SuiteOutline | None = None


@dataclass(frozen=True)
class TrainingStart:
    """What begins to train.

    Attributes:
        kind: of the config.
        run_dir: folder of the run.
        keys: what each key does, in words; empty where none are read.
        flops_per_token: of training; 0 where it is not known.
        peak_flops: a second, that the device reached in a matrix product; 0 where it was not measured.
    """

    kind: str
    run_dir: Path
    keys: Mapping[str, str] = field(default_factory=dict)
    flops_per_token: float = 0.0
    peak_flops: float = 0.0


class Progress(NamedTuple):
    """How far a training is: optimizer updates, all of them, and tokens that were read."""

    step: int
    max_steps: int
    tokens: int = 0


class Reporter(Protocol):
    """Shows or records what a run says. Only the main process of a job speaks to one."""

    @property
    def is_live(self) -> bool:
        """Whether a person watches as it trains; then it may take a moment to measure the device."""
        ...

    def note(self, text: str) -> None:
        """Takes a line that is good to know."""
        ...

    def warning(self, text: str) -> None:
        """Takes a line that deserves attention."""
        ...

    def status(self, text: str) -> None:
        """Takes what is going on at this moment; "" when that is over."""
        ...

    def opened(self, folder: Path) -> None:
        """Takes the run's folder, once it is there and locked."""
        ...

    def plan(self, outline: Outline) -> None:
        """Takes what will be trained on what, before the first step."""
        ...

    def begin(self, start: TrainingStart, at: Progress) -> None:
        """Takes the beginning of a training; may come again for the next one."""
        ...

    def progress(self, at: Progress) -> None:
        """Takes the end of an update."""
        ...

    def figures(self, at: Progress, figures: Mapping[str, float]) -> None:
        """Takes what was logged, training and held-out figures alike."""
        ...

    def validating(self, at: Progress, done: int, total: int) -> None:
        """Takes the batches of a validation that are done, of all (0: not known); 0 done when it is over."""
        ...

    def evaluating(self, source: str, done: int, total: int) -> None:
        """Takes the answers of an evaluation on a suite that are there, of all; "" when it is over."""
        ...

    def evaluated(self, step: int, figures: Sequence[SuiteFigure], seconds: float) -> None:
        """Takes what an evaluation on a suite says, and how long it took."""
        ...

    def sample(self, step: int, prompt: str, answer: str) -> None:
        """Takes what the model says now."""
        ...

    def pressed(self, key: str) -> None:
        """Takes a key that the run itself has no use for."""
        ...

    def counting(self, what: str, unit: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Returns a context for work in `total` parts; what it gives takes how many more are done."""
        ...

    def close(self) -> None:
        """Gives the screen back; may be called more than once, and what comes then is still taken."""
        ...

    def result(self, result: RunResult) -> None:
        """Takes how the run ended; nothing comes after it."""
        ...

    def failed(self, error: LabError) -> None:
        """Takes why the run ended without a result; the caller of `run` gets the error as well."""
        ...


class Silent:
    """A reporter that says nothing: of tests, and of all processes of a job but the main one."""

    is_live = False

    def note(self, text: str) -> None:
        """Says nothing."""

    def warning(self, text: str) -> None:
        """Says nothing."""

    def status(self, text: str) -> None:
        """Says nothing."""

    def opened(self, folder: Path) -> None:
        """Says nothing."""

    def plan(self, outline: Outline) -> None:
        """Says nothing."""

    def begin(self, start: TrainingStart, at: Progress) -> None:
        """Says nothing."""

    def progress(self, at: Progress) -> None:
        """Says nothing."""

    def figures(self, at: Progress, figures: Mapping[str, float]) -> None:
        """Says nothing."""

    def validating(self, at: Progress, done: int, total: int) -> None:
        """Says nothing."""

    def evaluating(self, source: str, done: int, total: int) -> None:
        """Says nothing."""

    def evaluated(self, step: int, figures: Sequence[SuiteFigure], seconds: float) -> None:
        """Says nothing."""

    def sample(self, step: int, prompt: str, answer: str) -> None:
        """Says nothing."""

    def pressed(self, key: str) -> None:
        """Says nothing."""

    @contextmanager
    def counting(self, what: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
        """Says nothing."""
        yield lambda count: None

    def close(self) -> None:
        """Says nothing."""

    def result(self, result: RunResult) -> None:
        """Says nothing."""

    def failed(self, error: LabError) -> None:
        """Says nothing."""


SILENT: Reporter = Silent()
