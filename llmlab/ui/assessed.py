"""The result of an assessment as tables: rates, wins, agreement."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmlab.evaluation.agreement import Overall, Pairwise
from llmlab.evaluation.assessed import ALL, Assessed, Rate, Wins
from llmlab.statistics import Interval, PairedDifference

MODES = {"single": "single answers", "pairs": "comparisons"}


def assessed_view(result: Assessed) -> RenderableType:
    """Returns all that assessors found."""
    people = ", ".join(result.assessors)
    parts: list[RenderableType] = [Text(f"{result.name}: {result.answers:,} answers, judged by {people}")]
    if result.rates:
        parts.append(_rates(result.rates))
    if result.difference:
        parts.append(_difference(*result.difference))
    if result.wins:
        parts.append(_wins(result.wins))
    if result.same:
        parts.append(
            Text(f"{result.same:,} pairs are the same answer twice; they were not asked about", "dim")
        )
    for mode, pairs in result.agreement.items():
        parts.append(_agreement(MODES[mode], pairs))
    for mode, found in result.overall.items():
        parts.append(_overall(MODES[mode], found))
    if result.notes:
        parts.append(_notes(result))
    return Group(*parts)


def _rates(rates: list[Rate]) -> Table:
    table = Table("model", "assessor", "category", "answers", "share (95 % interval)", title_justify="left")
    table.title = "rates"
    before: tuple[str, str] | None = None
    for rate in rates:
        here = (rate.model, rate.assessor)
        if before not in (None, here):
            table.add_section()
        who = here if before != here else ("", "")
        counts, share = f"{rate.count:,} of {rate.judged:,}", _share(rate.share, rate.interval)
        table.add_row(*who, rate.category, counts, share, style="bold" if rate.assessor == ALL else "")
        before = here
    return table


def _share(share: float, interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{share:.1%}"
    return f"{share:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def _difference(category: str, models: tuple[str, str], found: PairedDifference) -> Text:
    interval = found.interval
    ends = f" ({interval.low:+.1%} to {interval.high:+.1%})" if interval.low is not None else ""
    line = Text(f"{category}: {models[0]} less {models[1]} {found.difference:+.1%}{ends}, p = {found.p:.2g}")
    if not found.clear:
        line.append(f"; not distinguishable on {found.rows:,} judgements of each", style="yellow")
        if found.needed:
            line.append(f": about {found.needed:,} would be needed", style="yellow")
    return line


def _wins(wins: list[Wins]) -> Table:
    table = Table("assessor", "better", "answers", "share (95 % interval)", "sign test")
    table.title, table.title_justify = "comparisons", "left"
    for row in wins:
        share = "" if row.share is None else _share(row.share, row.interval)
        p = "" if row.p is None else f"p = {row.p:.2g}"
        style = "bold" if row.assessor == ALL else ""
        table.add_row(row.assessor, row.models[0], f"{row.won[0]:,}", share, p, style=style)
        for name, count in ((row.models[1], row.won[1]), ("equal", row.equal), ("unsure", row.unsure)):
            table.add_row("", name, f"{count:,}", "", "", style=style)
        table.add_section()
    return table


def _agreement(title: str, pairs: list[Pairwise]) -> Table:
    table = Table(
        "assessors",
        "judged by both",
        "same",
        "Cohen's kappa",
        title=f"agreement on {title}",
        title_justify="left",
    )
    for pair in pairs:
        kappa = "- (one category alone)" if pair.kappa is None else f"{pair.kappa:.3f}"
        if pair.kappa is not None and pair.low is not None and pair.high is not None:
            kappa += f" ({pair.low:.3f} to {pair.high:.3f})"
        table.add_row(" and ".join(pair.assessors), f"{pair.items:,}", f"{pair.agreed:.1%}", kappa)
    return table


def _overall(title: str, found: Overall) -> Text:
    alpha = "- (one category alone)" if found.alpha is None else f"{found.alpha:.3f}"
    if found.alpha is not None and found.low is not None and found.high is not None:
        alpha += f" ({found.low:.3f} to {found.high:.3f})"
    return Text(
        f"Krippendorff's alpha of {found.assessors} assessors on {found.items:,} {title}: {alpha}",
        style="bold",
    )


def _notes(result: Assessed) -> Table:
    table = Table("assessor", "note", title="notes", title_justify="left")
    for assessor, _, note in result.notes:
        table.add_row(assessor, note)
    return table
