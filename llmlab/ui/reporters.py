"""Who a run speaks to: a terminal, a stream of lines, its own `run.log`, or several of them. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from llmlab.errors import LabError
from llmlab.readable import visible
from llmlab.runs.details import run_details
from llmlab.runs.evaluations import SuiteFigure
from llmlab.runs.figures import RESULT_FIGURES
from llmlab.runs.folder import LOG, RunFolder, read_json
from llmlab.runs.manifest import MANIFEST
from llmlab.screen import screen
from llmlab.training.engine.reporter import Outline, Progress, Reporter, Silent, TrainingStart
from llmlab.trust import redact
from llmlab.ui.dashboard import Dashboard, Pace
from llmlab.ui.figures import SHOWN, suite_line
from llmlab.ui.outline import outline_lines
from llmlab.ui.result import result_lines
from llmlab.ui.samples import sampled
from llmlab.ui.units import duration, short_time

if TYPE_CHECKING:
    from llmlab.training.engine.job import RunResult

COUNTED = 15.0  # seconds between two lines about work in parts
TOLD = {"loss", "eval_loss", "eval_reward"}  # figures that a line is written for
SAMPLE = 4 * 80  # characters of a sample in a line


def run_reporter(console: Console | None = None) -> Reporter:
    """Returns what a run is started with: the console (left out, standard error) and the run's `run.log`."""
    return Several(console_reporter(console or screen()), RunLog())


def console_reporter(console: Console) -> Reporter:
    """Returns the reporter of a console: a dashboard in a terminal, lines elsewhere."""
    if console.is_terminal:
        return DashboardReporter(console)
    return LineReporter(partial(print_line, console))


def print_line(console: Console, line: Text | str, warning: bool) -> None:
    """Prints a line; only a terminal breaks it."""
    style = "yellow" if warning else ""
    console.print(line, style=style, highlight=False, soft_wrap=not console.is_terminal)


class LineReporter(Silent):
    """Says what a run says in lines.

    Args:
        write: takes a line without its newline, and whether it deserves attention.
    """

    def __init__(self, write: Callable[[Text | str, bool], None]):
        self.write, self.pace = write, Pace()

    def note(self, text: str) -> None:
        """Writes a line."""
        self.write(text, False)

    def warning(self, text: str) -> None:
        """Writes a line."""
        self.write(text, True)

    def plan(self, outline: Outline) -> None:
        """Writes a line for each fact."""
        for line, warning in outline_lines(outline):
            self.write(line, warning)

    def begin(self, start: TrainingStart, at: Progress) -> None:
        """Starts the clock."""
        self.pace.begin(at)

    def figures(self, at: Progress, figures: Mapping[str, float]) -> None:
        """Writes a line where a loss or a held-out figure is among them."""
        if "loss" in figures:
            self.pace.logged(at)
        if figures.keys() & TOLD:
            self.write(self._line(at, figures), False)

    def evaluated(self, step: int, figures: Sequence[SuiteFigure], seconds: float) -> None:
        """Writes what the suite's tasks are known by, with their intervals."""
        self.write(f"step {step}  {suite_line(figures)}  ({short_time(seconds)})", False)

    def sample(self, step: int, prompt: str, answer: str) -> None:
        """Writes prompt and answer as a line."""
        self.write(Text("sample  ").append(sampled(prompt, answer, SAMPLE)), False)

    def result(self, result: RunResult) -> None:
        """Writes what a finished run leaves to look at: its curve, figures and samples before and after."""
        if result.stopped_by:
            return
        with suppress(LabError, OSError):  # it was removed meanwhile
            for line in result_lines(run_details(RunFolder(result.folder))):
                self.write(line, False)

    @contextmanager
    def counting(self, what: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
        """Writes a line now and then."""
        began = last = time.perf_counter()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            now = time.perf_counter()
            if now - last > COUNTED:
                left = (now - began) / done * (total - done)
                self.write(f"{what}: {done:,} of {total:,} {unit}, {left:.0f} s left", False)
                last = now

        yield advance

    def _line(self, at: Progress, figures: Mapping[str, float]) -> str:
        shown = "  ".join(f"{SHOWN[key]} {value:.4g}" for key, value in figures.items() if key in SHOWN)
        speed = f"  {self.pace.speed:,.0f} tokens/s" if "loss" in figures and self.pace.speed else ""
        return f"step {at.step}/{at.max_steps}  {shown}{speed}  left {duration(self.pace.left(at))}"


class DashboardReporter(LineReporter):
    """Shows a training as a panel; what comes before and after it is lines.

    Args:
        console: a terminal.
    """

    is_live = True

    def __init__(self, console: Console):
        super().__init__(partial(print_line, console))
        self.console = console
        self.panel: Dashboard | None = None

    def begin(self, start: TrainingStart, at: Progress) -> None:
        """Opens the panel."""
        super().begin(start, at)
        self.close()
        self.panel = Dashboard(start, self.console, self.pace)
        self.panel.open(at)

    def progress(self, at: Progress) -> None:
        """Moves the bar."""
        if self.panel:
            self.panel.draw(at)

    def figures(self, at: Progress, figures: Mapping[str, float]) -> None:
        """Shows them in the panel."""
        if not self.panel:
            super().figures(at, figures)
            return
        if "loss" in figures:
            self.pace.logged(at)
        if figures.keys() & TOLD:
            self.panel.log.append(self._line(at, figures))
        self.panel.figures(at, figures)

    def validating(self, at: Progress, done: int, total: int) -> None:
        """Shows how far a validation is."""
        if self.panel:
            self.panel.validating(at, done, total)

    def evaluating(self, source: str, done: int, total: int) -> None:
        """Shows how far an evaluation is."""
        if self.panel:
            self.panel.evaluating(source, done, total)

    def evaluated(self, step: int, figures: Sequence[SuiteFigure], seconds: float) -> None:
        """Shows them in the panel."""
        if not self.panel:
            super().evaluated(step, figures, seconds)
            return
        self.panel.log.append(f"step {step}  {suite_line(figures)}  ({short_time(seconds)})")
        self.panel.evaluated(step, figures)

    def status(self, text: str) -> None:
        """Shows a line below the figures, until the next one; before there are figures, prints it."""
        if self.panel:
            self.panel.say(text)
        elif text:
            self.write(text, False)

    def warning(self, text: str) -> None:
        """Prints it above the panel, whose log has it too."""
        if self.panel:
            self.panel.log.append(text)
        super().warning(text)

    def sample(self, step: int, prompt: str, answer: str) -> None:
        """Shows it in the panel."""
        if self.panel:
            self.panel.sample(step, prompt, answer)
        else:
            super().sample(step, prompt, answer)

    def pressed(self, key: str) -> None:
        """Shows the keys, or the last lines of the log; again: takes them away."""
        if self.panel:
            self.panel.turn(key)

    @contextmanager
    def counting(self, what: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
        """Shows a bar with the time left."""
        columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Bars(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task("", total=total)
            yield lambda count: bars.advance(task, count)

    def close(self) -> None:
        """Closes the panel."""
        if self.panel:
            self.panel.close()
            self.panel = None


class RunLog(LineReporter):
    """Appends what is said as lines to the `run.log` of the run's folder; what comes before the folder is
    known waits for it.

    A log that cannot be written, on a full disk, never ends a run.
    """

    def __init__(self) -> None:
        super().__init__(self._append)
        self._path: Path | None = None
        self._waiting: list[str] = []

    def opened(self, folder: Path) -> None:
        """Writes what waited."""
        self._path = folder / LOG
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            self._append(line, False)

    def result(self, result: RunResult) -> None:
        """Writes what it leaves and how it ended; what comes then is another run's."""
        super().result(result)
        self._end(result_line(result))

    def failed(self, error: LabError) -> None:
        """Writes why the run ended, as the command line says it."""
        self._end(f"error: {error}")

    def _end(self, line: str) -> None:
        self._append(line, False)
        self._path, self._waiting = None, []

    def _append(self, line: Text | str, warning: bool) -> None:
        text = redact(visible(str(line)))
        if self._path is None:
            self._waiting.append(text)
            return
        with suppress(OSError), open(self._path, "a", encoding="utf-8") as file:
            file.write(text + "\n")


class Several:
    """Hands what a run says to several reporters."""

    def __init__(self, *reporters: Reporter):
        self.reporters = reporters

    @property
    def is_live(self) -> bool:
        """Whether one of them is."""
        return any(reporter.is_live for reporter in self.reporters)

    def note(self, text: str) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.note(text)

    def warning(self, text: str) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.warning(text)

    def status(self, text: str) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.status(text)

    def opened(self, folder: Path) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.opened(folder)

    def plan(self, outline: Outline) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.plan(outline)

    def begin(self, start: TrainingStart, at: Progress) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.begin(start, at)

    def progress(self, at: Progress) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.progress(at)

    def figures(self, at: Progress, figures: Mapping[str, float]) -> None:
        """Hands them to each."""
        for reporter in self.reporters:
            reporter.figures(at, figures)

    def validating(self, at: Progress, done: int, total: int) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.validating(at, done, total)

    def evaluating(self, source: str, done: int, total: int) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.evaluating(source, done, total)

    def evaluated(self, step: int, figures: Sequence[SuiteFigure], seconds: float) -> None:
        """Hands them to each."""
        for reporter in self.reporters:
            reporter.evaluated(step, figures, seconds)

    def sample(self, step: int, prompt: str, answer: str) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.sample(step, prompt, answer)

    def pressed(self, key: str) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.pressed(key)

    @contextmanager
    def counting(self, what: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
        """Lets each count."""
        with ExitStack() as stack:
            opened: list[AbstractContextManager[Callable[[int], None]]] = [
                reporter.counting(what, unit, total) for reporter in self.reporters
            ]
            counts = [stack.enter_context(one) for one in opened]

            def advance(count: int) -> None:
                for each in counts:
                    each(count)

            yield advance

    def close(self) -> None:
        """Closes each."""
        for reporter in self.reporters:
            reporter.close()

    def result(self, result: RunResult) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.result(result)

    def failed(self, error: LabError) -> None:
        """Hands it to each."""
        for reporter in self.reporters:
            reporter.failed(error)


def result_line(result: RunResult) -> str:
    """Returns how a run ended, for a person."""
    if result.stopped_by:
        return f"{result.folder} stopped; to resume: `llmlab run {result.folder}`"
    metrics = _of_the_model(result)
    figures = [
        f"{name.removeprefix('eval_')} {metrics[name]:.4g}" for name in RESULT_FIGURES if name in metrics
    ]
    return f"{result.model}  {'  '.join(figures)}"


def _of_the_model(result: RunResult) -> dict[str, float]:
    """Returns the figures of the model that a run left: of `best/` those of its own step, not of the last."""
    if result.model is None or result.model.name != "best":
        return result.metrics
    try:
        step = read_json(result.model / MANIFEST).get("step")
    except (OSError, ValueError, LabError):
        return {}
    lines = [line for line in RunFolder(result.folder).metrics() if line.get("step") == step]
    return {name: value for line in lines for name, value in line.items() if name in RESULT_FIGURES}
