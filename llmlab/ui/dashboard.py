"""The live panel of a run in a terminal: figures, the loss curve, speed, memory and time left."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence

import psutil
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmlab.config import KINDS
from llmlab.runs.evaluations import SuiteFigure
from llmlab.runs.figures import first_of_tasks
from llmlab.training.engine.reporter import Progress, TrainingStart
from llmlab.ui.curves import curve_drawing, in_letters_of
from llmlab.ui.figures import SHOWN, estimate, suite_title
from llmlab.ui.lines import within
from llmlab.ui.samples import sampled
from llmlab.ui.units import duration

HELP_KEY, LOG_KEY = "?", "l"
VIEWS = {HELP_KEY: "these keys; again: the curve", LOG_KEY: "the last lines of the log; again: the curve"}
LOG_LINES = 60
SIDE_BY_SIDE = 90  # columns from which on two samples stand beside each other
SMALLEST = 8  # lines of a second curve
REDRAWN = 0.25  # seconds between two drawings of the panel


class Pace:
    """Tokens a second between two logged losses, and the time that is left.

    Attributes:
        speed: tokens a second; 0 where none were counted.
    """

    def __init__(self) -> None:
        self.speed = 0.0
        self._mark = 0.0, 0  # when a loss was logged last, and the tokens read until then
        # when it began, and at which step; training may be over already, and only its last validation missing
        self._began = time.perf_counter(), 0

    def begin(self, at: Progress) -> None:
        """Starts the clock."""
        now = time.perf_counter()
        self.speed, self._mark, self._began = 0.0, (now, at.tokens), (now, at.step)

    def logged(self, at: Progress) -> None:
        """Takes a loss that was logged just now."""
        now = time.perf_counter()
        before, tokens = self._mark
        if at.tokens > tokens:
            self.speed = (at.tokens - tokens) / max(1e-9, now - before)
        self._mark = now, at.tokens

    def left(self, at: Progress) -> float:
        """Returns the seconds that are left; NaN before the first update."""
        began, first = self._began
        done = at.step - first
        return (time.perf_counter() - began) / done * (at.max_steps - at.step) if done else float("nan")


class Dashboard:
    """Loss curve, rate, tokens per second, memory and time left.

    Args:
        start: what is trained.
        console: to draw on.
        pace: of the training, kept by the caller.
    """

    def __init__(self, start: TrainingStart, console: Console, pace: Pace):
        self.start, self.console, self.pace = start, console, pace
        self.losses: list[tuple[int, float]] = []
        self.held_out: list[tuple[int, float]] = []
        self.latest: dict[str, float] = {}
        self.status = ""
        self.taken: tuple[int, str, str] | None = None
        self.before: tuple[int, str, str] | None = None  # the sample before that
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.turned = ""  # the key whose view is shown in the place of the curve
        self.suite: dict[str, list[tuple[int, float]]] = {}  # what each task of it is known by, step by step
        self.measured: dict[str, str] = {}  # the same in words, the last one
        self.answered = ("", 0, 0)  # source, answers of the evaluation that is going on, all of its
        self.validated = (0, 0)  # batches of the validation that is going on, and all of its
        self._at = Progress(0, 0)
        self._drawn = float("-inf")  # when
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def open(self, at: Progress) -> None:
        """Opens the panel."""
        self._live.start()
        self.draw(at)

    def close(self) -> None:
        """Gives the terminal back; may be called more than once."""
        self._live.stop()

    def figures(self, at: Progress, figures: Mapping[str, float]) -> None:
        """Takes in new figures."""
        if "loss" in figures:
            self.losses.append((at.step, figures["loss"]))
        if "eval_loss" in figures:
            self.held_out.append((at.step, figures["eval_loss"]))
        self.latest.update({key: value for key, value in figures.items() if key in SHOWN})
        self.draw(at)

    def validating(self, at: Progress, done: int, total: int) -> None:
        """Shows how far a validation is."""
        self.validated = done, total
        if done:
            self.draw(at)

    def evaluating(self, source: str, done: int, total: int) -> None:
        """Shows how far an evaluation on a suite is; "" when it is over."""
        self.answered = source, done, total
        self.draw(self._at, at_once=not source)

    def evaluated(self, step: int, figures: Sequence[SuiteFigure]) -> None:
        """Takes in what an evaluation on a suite says: what each task is known by."""
        firsts = first_of_tasks(one.logged for one in figures)
        for one in figures:
            if one.logged in firsts:
                self.suite.setdefault(one.name, []).append((step, one.value))
                self.measured[suite_title(one.name)] = estimate(one.value, one.low, one.high)
        self.draw(self._at, at_once=True)

    def say(self, text: str) -> None:
        """Shows a line below the figures, until the next one."""
        self.status = text
        self.draw(self._at, at_once=True)

    def sample(self, step: int, prompt: str, answer: str) -> None:
        """Shows what the model says now."""
        self.before, self.taken = self.taken, (step, prompt, answer)
        self.draw(self._at, at_once=True)

    def turn(self, key: str) -> None:
        """Shows what a key stands for in the place of the curve; again: the curve."""
        if key in VIEWS:
            self.turned = "" if self.turned == key else key
            self.draw(self._at, at_once=True)

    def draw(self, at: Progress, *, at_once: bool = False) -> None:
        """Builds the panel anew, at most every `REDRAWN` seconds:
        a small model's step takes less time than the panel.
        """
        self._at = at
        now = time.monotonic()
        if not at_once and now - self._drawn < REDRAWN:
            return
        self._drawn = now
        self._live.update(self.panel(at))

    def panel(self, at: Progress) -> RenderableType:
        """Returns the panel."""
        width = min(self.console.width, 110)
        cells = self._cells(at)
        half = (len(cells) + 1) // 2
        grid = Table.grid(padding=(0, 4))
        for left, right in zip(cells[:half], [*cells[half:], ("", "")], strict=False):
            grid.add_row(left[0], Text(left[1], style="bold"), right[0], Text(right[1], style="bold"))
        bars = Table.grid(padding=(0, 2))
        bars.add_row(f"step {at.step:,} of {at.max_steps:,}", _bar(at.step, max(1, at.max_steps), width))
        done, total = self.validated
        if done:
            bars.add_row("validating", _bar(done, total or None, width))
        source, answered, answers = self.answered
        if source:
            bars.add_row(f"evaluating {within(source, 20)}", _bar(answered, answers, width))
        suite = Table.grid(padding=(0, 2))
        for name, value in self.measured.items():
            suite.add_row(name, Text(value, style="bold"))
        parts: list[RenderableType] = [bars, grid, *([suite] if self.measured else [])]
        below = self.status or ("? what the keys do · l log" if self.start.keys else "")
        room = self.console.height - half - 6 - bool(below) - bool(done) - bool(source) - len(self.measured)
        if self.taken and not self.turned:
            lines = 3 if room > 12 else 2
            room -= lines
            parts.append(self._samples(width - 6, lines))
        if self.turned:
            parts.append(self._view(width - 6, max(5, room)))
        elif len(self.losses) > 1:
            parts += self._curves(width - 6, max(5, room))
        if below:
            style = "yellow" if self.status else "dim"
            parts.append(Text(below, style=style, no_wrap=True, overflow="ellipsis"))
        title = f"{KINDS[self.start.kind].TITLE} · {self.start.run_dir}"
        return Panel(Group(*parts), title=Text(title), width=width, border_style="cyan")

    def _curves(self, width: int, room: int) -> list[Text]:
        """Returns the curve of the loss and, where there is room, that of the first task of the suite."""
        watched = next(((name, points) for name, points in self.suite.items() if len(points) > 1), None)
        both = watched is not None and room >= 2 * SMALLEST
        drawings = [
            curve_drawing(self.losses, self.held_out, width, min(14, room - (SMALLEST if both else 0)))
        ]
        if watched and both:
            drawings.append(curve_drawing([], watched[1], width, SMALLEST, ("", suite_title(watched[0]))))
        return [Text(in_letters_of(self.console.encoding, drawing)) for drawing in drawings]

    def _samples(self, width: int, lines: int) -> RenderableType:
        """Returns the last sample, with the one before at its side where there is room."""
        taken = [self.before, self.taken] if self.before and width >= SIDE_BY_SIDE else [self.taken]
        each = width // len(taken) - 2
        shown = [
            Text(f"sample at step {step:,}  ").append(sampled(prompt, answer, lines * each - 24))
            for step, prompt, answer in filter(None, taken)
        ]
        beside = Table.grid(padding=(0, 2))
        for _ in shown:
            beside.add_column(width=each)
        beside.add_row(*shown)
        return beside

    def _view(self, width: int, room: int) -> RenderableType:
        """Returns what the keys do, or the last lines of the log."""
        if self.turned == LOG_KEY:
            lines = list(self.log)[-room:] or ["nothing yet"]
            return Text("\n".join(within(line, width) for line in lines))
        table = Table.grid(padding=(0, 2))
        for key, what in {**self.start.keys, **VIEWS}.items():
            table.add_row(Text(key, style="bold"), what)
        return table

    def _cells(self, at: Progress) -> list[tuple[str, str]]:
        cells = [(SHOWN[key], f"{value:.4g}") for key, value in self.latest.items()]
        speed, start = self.pace.speed, self.start
        if speed:
            cells.append(("tokens/s", f"{speed:,.0f}"))
        if speed and start.flops_per_token and start.peak_flops:
            cells.append(("of the device's peak", f"{speed * start.flops_per_token / start.peak_flops:.0%}"))
        return [*cells, ("memory", memory_in_use()), ("time left", duration(self.pace.left(at)))]


def _bar(done: int, total: int | None, width: int) -> ProgressBar:
    return ProgressBar(total=total, completed=done, width=width - 36)


def memory_in_use() -> str:
    """Returns the memory of the device, or of this process on the CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB (GPU)"
    return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"
