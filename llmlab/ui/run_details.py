"""All of a run on the screen: `llmlab runs show`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmlab.readable import shortened
from llmlab.runs.curves import headline
from llmlab.runs.details import Ancestor, Change, RunDetails
from llmlab.runs.figures import RESULT_FIGURES, better_of, is_of_suite
from llmlab.ui.curves import curve_drawing, in_letters_of
from llmlab.ui.explanations import show
from llmlab.ui.figures import figure_title, in_words, number
from llmlab.ui.result import best_in_words, drawn, memory_in_words, taken, title
from llmlab.ui.samples import sampled
from llmlab.ui.units import size

VALUE = 200  # characters of an option's value
SMALL = 7  # lines of a further curve
MOST_CURVES = 3  # further ones


def details_view(run: RunDetails, width: int, encoding: str = "utf-8") -> RenderableType:
    """Returns all that is known of a run.

    Args:
        run: its details.
        width: of the screen.
        encoding: of the screen, which may lack the letters of a curve.
    """
    wide = min(width, 110)
    parts: list[RenderableType] = [Text(title(run), style="bold cyan")]
    parts += [Text(in_letters_of(encoding, line)) for line in drawn(run, wide, 13)]
    parts += [Text(in_letters_of(encoding, line)) for line in further_curves(run, wide)]
    parts += [_figures(run), _facts(run), _changes(run.changes, known=run.config is not None)]
    if samples := list(_samples(run)):
        parts += samples
    return Group(*parts)


def further_curves(run: RunDetails, width: int) -> Iterator[str]:
    """Yields the lines of the curves of other held-out figures."""
    shown = set(headline(run.curves))
    names = [n for n in in_words(run.figures) if n not in shown and len(run.curves.get(n, [])) > 2]
    for name in names[:MOST_CURVES]:
        training = run.curves.get(name.removeprefix("eval_"), [])
        words = figure_title(name.removeprefix("eval_")), figure_title(name)
        yield from curve_drawing(training, run.curves[name], width, SMALL, words).splitlines()


def fact_rows(run: RunDetails) -> Iterator[tuple[str, str]]:
    """Yields (what, how much) of a run, beside its figures and options."""
    record = run.record
    if run.tags:
        yield "tags", ", ".join(run.tags)
    if started := record.get("started"):
        yield "started", str(started).replace("T", " ").removesuffix("+00:00") + " UTC"
    yield "took", taken(run)
    if kept := best_in_words(run):
        yield "chosen", kept
    if memory := memory_in_words(run.memory):
        yield "memory", memory
    yield from model_rows(record)
    yield from data_rows(record)
    yield "lineage", lineage_in_words(run.lineage)
    for part in run.parts:
        complete = "" if part.complete else "  (no manifest: not complete)"
        yield f"{part.name}/", f"{size(part.size)}{complete}"
    yield "on disk", size(run.size)
    yield from run.trackers.items()


def model_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (what, how much) of the model and where it was trained."""
    total, trained = record.get("parameters"), record.get("trained_parameters")
    if isinstance(total, int) and isinstance(trained, int) and total:
        share = "all trained" if trained == total else f"{trained:,} trained ({trained / total:.2%})"
        yield "parameters", f"{total:,}, {share}"
    where = [record.get(name) for name in ("hardware", "device", "precision")]
    attention = record.get("attention")
    where += [f"{attention} attention" if attention else None]
    if any(where):
        yield "machine", ", ".join(str(part) for part in where if part)
    if isinstance(processes := record.get("processes"), int) and processes > 1:
        yield "processes", f"{processes}, {record.get('engine') or '?'}"


def data_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (what, how much) of the rows that were trained on and held out."""
    facts = record.get("data") or {}
    if facts:
        words = (
            f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name} {value}"
            for name, value in facts.items()
        )
        yield "data", ", ".join(words)
    sources = record.get("data_rows")
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict):
            kept, read, held_out = (source.get(name, "?") for name in ("kept", "read", "held_out"))
            yield "  source", f"{source.get('source')}: {read} read, {kept} kept, {held_out} held out"
    held_out = record.get("validation_rows")
    if isinstance(held_out, dict) and held_out:
        yield "validated on", ", ".join(f"{rows} rows of {name}" for name, rows in held_out.items())
    suite = (record.get("config") or {}).get("evaluation_suite")
    if isinstance(suite, str):
        yield "evaluated on", f"the suite {suite}; its answers are in evaluations/step-N"


def lineage_in_words(lineage: tuple[Ancestor, ...]) -> str:
    """Returns the ancestors of a run in one line, oldest first."""
    return " → ".join(f"{one.name} ({one.kind})" if one.kind else one.name for one in lineage)


def _figures(run: RunDetails) -> Table:
    table = Table(title="held-out figures", title_justify="left")
    table.add_column("figure", overflow="fold")
    for name in ("before", "after", "best"):
        table.add_column(name, justify="right")
    spans = any(map(run.interval, run.figures))
    if spans:
        table.add_column("95 % interval after", no_wrap=True)
    for name in ordered(run.figures):
        before, after = run.figures[name]
        span = [span_in_words(run.interval(name))] if spans else []
        after_it = Text(number(after), style="bold")
        table.add_row(figure_title(name), number(before), after_it, best(run, name), *span)
    if not run.figures:
        table.add_row("no rows are held out", "", "", "")
    return table


def span_in_words(span: tuple[float, float] | None) -> str:
    """Returns an interval; "" for none."""
    return f"{number(span[0])} to {number(span[1])}" if span else ""


def ordered(names: Iterable[str]) -> list[str]:
    """Returns figures with those first that have words of their own."""
    names = list(names)
    known = in_words(names)
    return [*known, *(name for name in names if name not in known)]


def best(run: RunDetails, name: str) -> str:
    """Returns the best value of a figure that a run is judged by, with the step where it is one of the suite;
    "" for another one.
    """
    points = run.curves.get(name, [])
    better = better_of(name)
    if not (name in RESULT_FIGURES or is_of_suite(name)) or not points or better is None:
        return ""
    value = (min if better == "lower" else max)(value for _, value in points)
    if not is_of_suite(name):
        return number(value)
    step = next(step for step, one in points if one == value)
    return f"{number(value)} (step {step:,})"


def _facts(run: RunDetails) -> Table:
    table = Table(title="run", show_header=False, title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fact_rows(run):
        table.add_row(name, value)
    return table


def _changes(changes: tuple[Change, ...], *, known: bool) -> Table:
    table = Table(
        "option", "value", "default", title="options that are not the defaults", title_justify="left"
    )
    for change in changes:
        table.add_row(change.option, option_value(change.value), option_value(change.default))
    if not known:
        table.add_row("this version cannot read the config: see run.json", "", "")
    elif not changes:
        table.add_row("none", "", "")
    return table


def option_value(value: Any) -> str:
    """Returns the value of an option as JSON data in a line."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return "; ".join(str(item["name"]) for item in value)
    return shortened(show(value), VALUE)


def _samples(run: RunDetails) -> Iterator[Text]:
    for when, sample in run.samples.items():
        text = Text(f"sample {when}, step {sample['step']:,}  ", style="cyan")
        yield text.append(sampled(str(sample["prompt"]), str(sample["answer"]), 600))
