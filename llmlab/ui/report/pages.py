"""What stands on a page about a run, or about several beside each other.

A page is `page.html.jinja` with a `Page`. Names, options, samples and whatever else comes from outside is
text to Jinja, which escapes it; only the charts are markup, and hold no such text. The page forbids scripts
and everything from the network (its content security policy), so that an error of ours would do nothing
either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmlab import __version__
from llmlab.config import KINDS
from llmlab.export.facts import public, public_name
from llmlab.files import write_text_atomically
from llmlab.readable import visible
from llmlab.runs.comparison import Comparison
from llmlab.runs.curves import headline, mean_curve, thinned
from llmlab.runs.details import RunDetails
from llmlab.runs.figures import RESULT_FIGURES, first_of_tasks
from llmlab.trust import redact
from llmlab.ui.comparison import (
    compared_curves,
    difference_in_words,
    estimate_in_words,
    is_clear,
    uncertainty_in_words,
    warnings,
)
from llmlab.ui.figures import figure_title, in_words, number
from llmlab.ui.report.charts import Line, chart, colour, dash
from llmlab.ui.run_details import best, fact_rows, option_value, ordered, span_in_words
from llmlab.ui.units import duration, short_count, size

REPORT = "report.html"  # in a run's folder
CHARTS = 8  # of a run
ROWS = 12  # of the table below a chart
MOST_FIGURES = 10  # of a comparison


@dataclass(frozen=True)
class Key:
    """A line of a chart's legend."""

    name: str
    colour: str
    dash: str


@dataclass(frozen=True)
class Chart:
    """A chart with its words.

    Attributes:
        title: what is drawn.
        svg: the drawing.
        keys: its legend.
        description: what it shows, for who does not see it.
        table: header and rows of some of its points.
    """

    title: str
    svg: str
    keys: tuple[Key, ...]
    description: str
    table: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Table:
    """A table of a page: a heading, a header (none for names and values), rows, notes below."""

    heading: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """What a model said: when, to what, and what."""

    when: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Headline:
    """The figure that a page begins with."""

    title: str
    before: str
    after: str


@dataclass(frozen=True)
class Page:
    """All of a page."""

    title: str
    subtitle: str
    headlines: tuple[Headline, ...] = ()
    warnings: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    charts_heading: str = "Curves"
    samples: tuple[Sample, ...] = ()
    tables: tuple[Table, ...] = ()
    repeat: tuple[str, ...] = ()
    config: str = ""
    version: str = field(default=__version__)


def run_page(run: RunDetails) -> Page:
    """Returns the page about a run; folders of this machine are left out of its names."""
    run = replace(
        run,
        record=public(run.record),
        path=Path(public_name(str(run.path))),
        lineage=tuple(replace(one, name=public_name(one.name)) for one in run.lineage),
        trackers={name: command for name, command in run.trackers.items() if name != "tensorboard"},
    )
    title = KINDS[run.kind].TITLE if run.kind in KINDS else run.kind
    facts = [(name.strip(), value) for name, value in fact_rows(run)]
    figures = [
        (
            figure_title(name),
            *map(number, run.figures[name]),
            best(run, name),
            span_in_words(run.interval(name)),
        )
        for name in ordered(run.figures)
    ]
    spans = any(map(run.interval, run.figures))
    header = ("figure", "before", "after", "best", *(("95 % interval after",) if spans else ()))
    tables = [Table("Held-out figures", header, tuple(row[: len(header)] for row in figures))]
    tables += [Table("The run", (), tuple(facts))]
    changes = [
        (one.option, option_value(public(one.value)), option_value(one.default)) for one in run.changes
    ]
    if changes:
        header = ("option", "value", "default")
        tables += [Table("Options that are not the defaults", header, tuple(changes))]
    packages = run.record.get("packages")
    if isinstance(packages, dict):
        versions = {"llmlab": run.record.get("llmlab"), "Python": run.record.get("python"), **packages}
        rows = tuple((str(name), str(version)) for name, version in versions.items() if version)
        tables += [Table("Versions", (), rows)]
    return Page(
        title=run.path.name,
        subtitle=f"{title} · {run.status}",
        headlines=tuple(_headlines(run)),
        charts=tuple(_charts(run)),
        samples=tuple(
            Sample(f"{when} (step {s['step']:,})", said(str(s["prompt"])), said(str(s["answer"])))
            for when, s in run.samples.items()
        ),
        tables=tuple(table for table in tables if table.rows),
        repeat=("llmlab run config.json", f"llmlab runs again {run.path.name} --set seed=1"),
        config=_config(run),
    )


def comparison_page(comparison: Comparison) -> Page:
    """Returns the page of runs beside each other."""
    groups = comparison.groups
    members = Table(
        "Runs",
        ("group", "run", "seed"),
        tuple(
            (g.name, public_name(str(run.path)), str(run.record.get("seed")))
            for g in groups
            for run in g.runs
        ),
    )
    header = ("option", *(group.name for group in groups))
    options = tuple(
        (name, *(option_value(public(value)) for value in values))
        for name, values in comparison.options.items()
    )
    nothing = () if options else (("none", *("" for _ in groups)),)
    return Page(
        title=" · ".join(group.name for group in groups),
        subtitle=f"{sum(len(group.runs) for group in groups)} runs beside each other",
        warnings=tuple(warnings(comparison)),
        charts=tuple(_compared_charts(comparison)),
        tables=(
            Table("Options that differ", header, options or nothing),
            _compared_figures(comparison),
            members,
        ),
    )


def html(page: Page) -> str:
    """Returns a page as HTML, without secrets, and with control characters as symbols."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("llmlab.ui.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return redact(environment.get_template("page.html.jinja").render(page=page)) + "\n"


def write_page(page: Page, file: Path) -> Path:
    """Writes a page, and returns its file.

    Raises:
        LabError: when it cannot be written.
    """
    write_text_atomically(file, html(page))
    return file


def _headlines(run: RunDetails) -> Iterator[Headline]:
    """Yields what the run came to, and what it took."""
    held_out = [name for name in run.figures if name in RESULT_FIGURES][:3]
    for name in [*held_out, *first_of_tasks(run.figures)[:2]]:
        before, after = run.figures[name]
        yield Headline(figure_title(name), "" if before is None else number(before), number(after))
    if isinstance(seconds := run.record.get("seconds"), (int, float)):
        yield Headline("time", "", duration(seconds))
    if run.tokens:
        yield Headline("tokens read in training", "", short_count(run.tokens))
    if run.memory.measured:
        predicted = run.memory.predicted
        beside = f" (predicted {size(predicted)})" if predicted else ""
        yield Headline(f"peak {run.memory.place} memory{beside}", "", size(run.memory.measured))


def said(text: str) -> str:
    """Returns an answer with its blank lines told, where there are many or nothing else."""
    if not text.strip():
        return f"({len(text):,} blank characters)" if text else "(nothing)"
    return re.sub(r"\n{4,}", lambda lines: f"\n({len(lines[0]) - 1:,} blank lines)\n", text.rstrip("\n"))


def _charts(run: RunDetails) -> Iterator[Chart]:
    """Yields the charts of a run: what it is about, then other figures that have words, with held-out ones
    over those of training.
    """
    first = headline(run.curves)
    suite = first_of_tasks(run.curves)
    bare = (name.removeprefix("eval_") for name in (*first, *suite, *in_words(run.curves)))
    for name in list(dict.fromkeys(bare))[:CHARTS]:
        names = [one for one in (name, f"eval_{name}") if len(run.curves.get(one, [])) > 1]
        if names:
            band = " (band: its 95 % interval)"
            series = {
                figure_title(one) + (band if one in run.intervals else ""): _rows(run, one) for one in names
            }
            marked = tuple(one.startswith("eval_") for one in names)
            yield _chart(figure_title(names[0] if names[0] in suite else name), series, name, marked)


def _rows(run: RunDetails, name: str) -> list[tuple[int, float, float, float]]:
    """Returns a curve with the 95 % interval of each point that has one."""
    spans = run.intervals.get(name, {})
    return [(step, value, *spans.get(step, (value, value))) for step, value in run.curves[name]]


def _compared_charts(comparison: Comparison) -> Iterator[Chart]:
    for name in compared_curves(comparison):
        series = {g.name: mean_curve(g.curves(name)) for g in comparison.groups if g.curves(name)}
        yield _chart(figure_title(name), series, name, (name.startswith("eval_"),) * len(series))


def _chart(
    title: str, series: dict[str, list[tuple[int, float, float, float]]], salt: str, marked: Sequence[bool]
) -> Chart:
    """Returns a chart of several lines by their names; held-out ones have their points marked."""
    lines = [
        Line(rows, place, marks)
        for place, (rows, marks) in enumerate(zip(series.values(), marked, strict=True))
    ]
    keys = tuple(Key(name, colour(place), dash(place)) for place, name in enumerate(series))
    ends = (
        f"{name} from {number(rows[0][1])} (step {rows[0][0]}) to {number(rows[-1][1])} (step {rows[-1][0]})"
        for name, rows in series.items()
        if rows
    )
    return Chart(title, chart(lines, salt=salt), keys, f"{title}: {'; '.join(ends)}", _points(series))


def _points(series: dict[str, list[tuple[int, float, float, float]]]) -> tuple[tuple[str, ...], ...]:
    """Returns a table of some points of each line."""
    rows = [
        (name, f"{step:,}", number(value))
        for name, points in series.items()
        for step, value in thinned([(s, v) for s, v, *_ in points], ROWS)
    ]
    return (("line", "step", "value"), *rows)


def _compared_figures(comparison: Comparison) -> Table:
    rows: list[tuple[str, ...]] = []
    for name in in_words(comparison.figure_names())[:MOST_FIGURES]:
        for place, group in enumerate(comparison.groups):
            one, difference = group.figures.get(name), group.differences.get(name)
            clear = " *" if is_clear(difference) else ""
            rows.append(
                (
                    figure_title(name) if place == 0 else "",
                    group.name,
                    number(one.before) if one else "-",
                    estimate_in_words(one),
                    difference_in_words(difference) + clear,
                )
            )
    header = ("figure", "group", "before", "after", "difference")
    notes = tuple(uncertainty_in_words(comparison, "a star"))
    return Table("Held-out figures at the end", header, tuple(rows), notes)


def _config(run: RunDetails) -> str:
    data = run.config.to_json_dict() if run.config else dict(run.record.get("config") or {})
    shown = {
        name: value for name, value in public(data).items() if name != "output_dir" and value is not None
    }
    return json.dumps(shown, indent=2, ensure_ascii=False)
