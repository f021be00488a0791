"""What a run leaves to look at when it ends: the curve, the figures before and after, a sample before and
after, what it took, and where to look further.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from llmlab.config import KINDS
from llmlab.runs.curves import headline
from llmlab.runs.details import Memory, RunDetails
from llmlab.ui.curves import curve_drawing
from llmlab.ui.figures import figure_title, in_words, number
from llmlab.ui.samples import sampled
from llmlab.ui.units import duration, size

WIDTH, CURVE = 78, 11  # characters, and lines of the curve
FIGURES = 6  # that are shown
SAMPLE = 2 * 60  # characters of a sample


def result_lines(run: RunDetails) -> Iterator[Text | str]:
    """Yields what is left of a run, line by line; nothing of it is wider than `WIDTH`."""
    yield Text(f"── {title(run)} ".ljust(WIDTH, "─"), style="cyan")
    yield from drawn(run, WIDTH, CURVE)
    yield from figure_lines(run)
    if kept := best_in_words(run):
        yield f"chosen         {kept}"
    for when in ("before", "after"):
        if sample := run.samples.get(when):
            shown = sampled(str(sample["prompt"]), str(sample["answer"]), SAMPLE)
            yield Text(f"sample {when}".ljust(15)).append(shown)
    yield f"it took        {taken(run)}"
    if memory := memory_in_words(run.memory):
        yield f"memory         {memory}"
    commands = {"look again": f"llmlab runs show {run.path}", "make a page": f"llmlab runs report {run.path}"}
    yield from (f"{name:<13}  {command}" for name, command in {**commands, **run.trackers}.items())


def title(run: RunDetails) -> str:
    """Returns what was done, and where it is."""
    return f"{KINDS[run.kind].TITLE if run.kind in KINDS else run.kind} · {run.path} · {run.status}"


def drawn(run: RunDetails, width: int, height: int) -> Iterator[str]:
    """Yields the lines of the curve that a run is about; none where it logged no such figure."""
    names = headline(run.curves)
    training, held_out = (run.curves.get(name, []) for name in names)
    if len(training) > 1 or len(held_out) > 1:
        words = figure_title(names[0]), figure_title(names[1])
        yield from curve_drawing(training, held_out, width, height, words).splitlines()


def figure_lines(run: RunDetails, most: int = FIGURES) -> Iterator[Text]:
    """Yields the held-out figures before and after."""
    if not run.figures:
        yield Text("no rows are held out: nothing was measured before and after", style="dim")
        return
    shown = [(name, run.figures[name]) for name in in_words(run.figures)[:most]]
    wide = max(len(figure_title(name)) for name, _ in shown)
    for name, (before, after) in shown:
        line = Text(f"{figure_title(name):<{wide}}  ")
        line.append(f"{number(before):>9} → ").append(f"{number(after):<9}", style="bold")
        if span := run.interval(name):
            line.append(f" ({number(span[0])} to {number(span[1])})", style="dim")
        yield line


def best_in_words(run: RunDetails) -> str:
    """Returns of which step the weights in `best/` are, and by what they were chosen; "" for none."""
    kept = run.record.get("best")
    if not isinstance(kept, dict) or not isinstance(value := kept.get("value"), (int, float)):
        return ""
    return f"best/ is of step {kept.get('step')}: {figure_title(str(kept.get('figure')))} {number(value)}"


def taken(run: RunDetails) -> str:
    """Returns what a run took: time, updates, tokens."""
    parts = []
    if isinstance(seconds := run.record.get("seconds"), (int, float)):
        share = f", {run.evaluating / seconds:.0%} of it evaluations" if run.evaluating and seconds else ""
        parts.append(duration(seconds) + share)
    if isinstance(step := run.record.get("step"), int):
        parts.append(f"{step:,} updates")
    if run.tokens:
        parts.append(f"{run.tokens:,} tokens")
    return " · ".join(parts) or "nothing that is known"


def memory_in_words(memory: Memory) -> str:
    """Returns the peak of a run's memory beside the predicted one; "" where neither is known."""
    measured = f"{size(memory.measured)} of the {memory.place}" if memory.measured else ""
    predicted = f"{size(memory.predicted)} predicted" if memory.predicted else ""
    if measured and predicted:
        return f"{measured} at the peak ({predicted})"
    return f"{measured} at the peak" if measured else predicted
