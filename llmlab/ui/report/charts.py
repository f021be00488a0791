"""Curves and reliability plots as SVG for a page, drawn by matplotlib.

A chart holds no text from outside: titles and legends stand beside it in the page. Its colours are those of
the page's style, so that they follow light and dark: matplotlib draws with placeholders, which become
`var(--...)`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llmlab.runs.curves import thinned

POINTS = 400  # of a line
SIZE = (4.6, 2.6)  # inches, of which a page shows as many as there is room for
SERIES = 8  # colours; then they come again, with other dashes
INK, GRID = "#010203", "#010204"  # placeholders
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

Row = tuple[int, float, float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        rows: (step, value, least, largest); a band is drawn where the last two differ.
        series: number of its colour and dashes.
        marks: whether its points are marked, as those of validations are.
    """

    rows: Sequence[Row]
    series: int
    marks: bool = False


@dataclass(frozen=True)
class Bar:
    """A bin of a reliability plot: answers of about the same probability.

    Attributes:
        low: end of the bin, 0 to 1.
        high: the other end.
        count: answers in it.
        confidence: their mean probability.
        accuracy: share of them that is right.
        ends: of the 95 % interval of that share.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float
    ends: tuple[float, float]


def chart(lines: Sequence[Line], *, salt: str) -> str:
    """Returns a chart as an `<svg>` element without a size of its own; `salt` keeps its ids apart from those
    of other charts in the page.
    """
    from matplotlib.ticker import MaxNLocator

    with _drawing(salt) as (figure, drawn):
        axes = figure.add_subplot()
        for line in lines:
            _draw(axes, line)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return drawn[0]


def reliability_chart(models: Sequence[Sequence[Bar]], *, salt: str) -> str:
    """Returns a reliability plot as an `<svg>` element: above, how often answers of a bin are right, with
    95 % intervals, over how probable they were, and a diagonal where both are the same; below, how many
    answers a bin has. Each model is a
    series, with counts of its own.
    """
    from matplotlib.ticker import PercentFormatter

    size = (SIZE[0], 2.7 + 0.75 * len(models))
    with _drawing(salt, size) as (figure, drawn):
        heights = (3.2, *(0.8 for _ in models))
        above, *counts = figure.subplots(1 + len(models), sharex=True, height_ratios=heights)
        above.plot((0, 1), (0, 1), color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for place, (bars, below) in enumerate(zip(models, counts, strict=True)):
            _draw_rates(above, bars, place)
            _draw_counts(below, bars, place)
        above.set_ylabel("right")
        above.set_ylim(-0.03, 1.03)
        above.set_xlim(0, 1)
        above.yaxis.set_major_formatter(PercentFormatter(1))
        above.grid(color=GRID, linewidth=0.6)
        counts[-1].set_xlabel("probability that it gives")
        counts[-1].xaxis.set_major_formatter(PercentFormatter(1))
    return drawn[0]


def _draw_rates(axes: Any, bars: Sequence[Bar], place: int) -> None:
    """Draws how often a model is right, with whiskers."""
    whiskers = [[one.accuracy - one.ends[0] for one in bars], [one.ends[1] - one.accuracy for one in bars]]
    axes.errorbar(
        [one.confidence for one in bars],
        [one.accuracy for one in bars],
        yerr=[[max(0.0, end) for end in ends] for ends in whiskers],
        color=_stand_in(place),
        marker="os^D"[place % 4],
        markersize=4.5,
        linewidth=1.4,
        linestyle=DASHES[place % len(DASHES)],
        elinewidth=1,
        capsize=2.5,
        clip_on=False,
    )


def _draw_counts(axes: Any, bars: Sequence[Bar], place: int) -> None:
    """Draws how many answers of a model are in each bin."""
    middles = [(one.low + one.high) / 2 for one in bars]
    columns = axes.bar(middles, [one.count for one in bars], 0.08, color=_stand_in(place))
    axes.bar_label(columns, [f"{one.count:,}" for one in bars], padding=1.5, fontsize=8)
    axes.margins(y=0.6)
    axes.set_yticks([])
    axes.set_ylabel("answers", fontsize=8)


@contextmanager
def _drawing(salt: str, size: tuple[float, float] | None = None) -> Iterator[tuple[Any, list[str]]]:
    """Yields a figure to draw on, and a list that holds its markup once the block is done."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": salt,
        "font.family": "sans-serif",
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(
            ("axes.edgecolor", "xtick.color", "ytick.color", "text.color", "axes.labelcolor"), INK
        ),
    }
    drawn: list[str] = []
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size or SIZE, layout="constrained")
        yield figure, drawn
        content = io.StringIO()
        FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None, "Creator": None})
    drawn.append(_themed(content.getvalue()))


def colour(series: int) -> str:
    """Returns the CSS colour of a series."""
    return f"var(--s{series % SERIES})"


def dash(series: int) -> str:
    """Returns the dashes of a series as SVG's `stroke-dasharray`; "none" for a whole line."""
    style = DASHES[series % len(DASHES)]
    return "none" if isinstance(style, str) else " ".join(str(2 * part) for part in style[1])


def _draw(axes: object, line: Line) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    stand_in = _stand_in(line.series)
    points = thinned([(step, mean) for step, mean, *_ in line.rows], POINTS)
    axes.plot(
        [step for step, _ in points],
        [value for _, value in points],
        color=stand_in,
        linestyle=DASHES[line.series % len(DASHES)],
        linewidth=1.6,
        marker="o" if line.marks and len(points) <= 60 else None,
        markersize=3.5,
    )
    if any(least != largest for _, _, least, largest in line.rows):
        steps = [step for step, *_ in line.rows]
        least, largest = [row[2] for row in line.rows], [row[3] for row in line.rows]
        axes.fill_between(steps, least, largest, color=stand_in, alpha=0.15, linewidth=0)


def _stand_in(series: int) -> str:
    return f"#0102{16 + series % SERIES:02x}"


def _themed(svg: str) -> str:
    """Returns the element alone, in the colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda one: one[0] if one[1] in used else "", svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1
    )
    svg = svg.replace("fill: #ffffff", "fill: none")
    for series in range(SERIES):
        svg = svg.replace(_stand_in(series), colour(series))
    return svg.replace(INK, "var(--soft)").replace(GRID, "var(--grid)").strip()
