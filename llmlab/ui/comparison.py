"""Runs beside each other on the screen: `llmlab runs compare`."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmlab.runs.comparison import Comparison, Difference, Estimate
from llmlab.runs.comparison import Group as RunGroup
from llmlab.runs.curves import headline, mean_curve
from llmlab.runs.figures import first_of_tasks
from llmlab.ui.curves import letter, overlaid
from llmlab.ui.figures import figure_title, in_words, number
from llmlab.ui.run_details import option_value

MOST = 10  # figures that are shown


def comparison_view(comparison: Comparison, width: int) -> RenderableType:
    """Returns runs beside each other: curves, the options that differ, figures with their uncertainty."""
    wide = min(width, 110)
    parts: list[RenderableType] = [_legend(comparison.groups)]
    for name in compared_curves(comparison):
        series = [[(step, mean) for step, mean, *_ in mean_curve(g.curves(name))] for g in comparison.groups]
        parts += [Text(figure_title(name), style="bold"), overlaid(series, wide, 12)]
    if comparison.options:
        parts += [Text("options that differ", style="italic"), _options(comparison)]
    elif len(comparison.groups) == 1:
        parts += [Text("they differ in nothing but the seed", style="italic")]
    parts += [_figures(comparison)]
    parts += [Text(note, style="yellow") for note in warnings(comparison)]
    parts += [Text(note, style="dim") for note in uncertainty_in_words(comparison)]
    return Group(*parts)


def compared_curves(comparison: Comparison) -> list[str]:
    """Returns the figures whose curves are shown: what the runs are about, in training and held out."""
    logged = [name for group in comparison.groups for run in group.runs for name in run.curves]
    names = [*headline(logged), *first_of_tasks(dict.fromkeys(logged))]
    return [
        name
        for name in names
        if sum(any(len(points) > 1 for points in group.curves(name)) for group in comparison.groups)
    ]


def warnings(comparison: Comparison) -> Iterator[str]:
    """Yields what keeps figures from being compared."""
    if comparison.other_rows:
        yield (
            "warning: the groups have other held-out rows, or cut them up otherwise: their figures differ for"
            " that, too"
        )
    if comparison.other_methods:
        yield "warning: runs of several methods: a loss of one is not that of another"
    for name in comparison.unfinished:
        yield f"warning: {name} is not finished: its figures are those of its last validation"


def uncertainty_in_words(comparison: Comparison, clear: str = "bold") -> Iterator[str]:
    """Yields what the intervals are, each kind that is there once; `clear` is how a difference is marked that
    is clear.
    """
    kinds = {one.how for group in comparison.groups for one in group.figures.values()}
    if "seeds" in kinds:
        yield (
            "± of several seeds: the 95 % interval of their mean (Student's t); it holds for other seeds on"
            " the same data"
        )
    if "share of rows" in kinds:
        yield (
            "[low, high] of one run: the 95 % interval of a share of held-out rows (Wilson); it says nothing"
            " of other seeds"
        )
    if "rows" in kinds:
        yield (
            "[low, high] of one run: the 95 % interval of a mean over held-out rows (Student's t); it says"
            " nothing of other seeds"
        )
    if "evaluation" in kinds:
        yield (
            "[low, high] of a figure of the suite: the 95 % interval of one run over its rows; it says"
            " nothing of other seeds"
        )
    if "none" in kinds:
        yield "without an interval: one run, of which only the mean over its held-out rows was kept"
    differences = [one for group in comparison.groups for one in group.differences.values()]
    if any(one.low is not None for one in differences):
        yield f"difference: from the first group, with Welch's 95 % interval; {clear} where 0 is not in it"


def estimate_in_words(one: Estimate | None) -> str:
    """Returns a figure with its uncertainty."""
    if one is None:
        return "-"
    if one.low is None or one.high is None:
        return number(one.mean)
    if one.how == "seeds":
        return f"{number(one.mean)} ± {(one.high - one.low) / 2:.2g}"
    return f"{number(one.mean)} [{number(one.low)}, {number(one.high)}]"


def difference_in_words(one: Difference | None) -> str:
    """Returns a difference with its uncertainty; "" for none."""
    if one is None:
        return ""
    interval = "" if one.low is None else f" [{one.low:+.3g}, {one.high:+.3g}]"
    return f"{one.mean:+.3g}{interval}"


def is_clear(one: Difference | None) -> bool:
    """Returns whether the interval of a difference does not hold 0."""
    return one is not None and one.low is not None and one.high is not None and one.low * one.high > 0


def _legend(groups: tuple[RunGroup, ...]) -> Table:
    table = Table("", "run", "seeds")
    for number_, group in enumerate(groups):
        paths = "\n".join(str(run.path) for run in group.runs)
        table.add_row(letter(number_), paths, ", ".join(str(seed) for seed in group.seeds))
    return table


def _options(comparison: Comparison) -> Table:
    table = Table()
    table.add_column("option")
    for number_ in range(len(comparison.groups)):
        table.add_column(letter(number_), overflow="fold")
    for name, values in comparison.options.items():
        table.add_row(name, *(option_value(value) for value in values))
    return table


def _figures(comparison: Comparison) -> Table:
    """Returns the figures: a row each and a column a group, or a row a group where there are many."""
    table = Table(title="held-out figures at the end", title_justify="left")
    for name in ("figure", "", "runs"):
        table.add_column(name, overflow="fold")
    for name in ("before", "after", "difference"):
        table.add_column(name, justify="right", overflow="fold")
    for name in in_words(comparison.figure_names())[:MOST]:
        for place, group in enumerate(comparison.groups):
            one, difference = group.figures.get(name), group.differences.get(name)
            style = "bold" if is_clear(difference) else ""
            table.add_row(
                figure_title(name) if place == 0 else "",
                letter(place),
                str(len(one.values)) if one else "",
                number(one.before) if one else "",
                estimate_in_words(one),
                Text(difference_in_words(difference), style=style),
            )
        table.add_section()
    return table
