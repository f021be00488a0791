"""The screens of the data: what a source holds, and what the catalogue knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from llmlab.config import SourceConfig
from llmlab.config.base import validate
from llmlab.data.catalogue import CATALOGUE, Entry, entry, real_id
from llmlab.data.inspect import PERCENTILES, Inspection
from llmlab.errors import LabError
from llmlab.screen import styled
from llmlab.ui.data_quality import texts_rows

if TYPE_CHECKING:
    from llmlab.data.preview import SourceLook

BARS = 12
SHOWN = 700  # characters of the sample


def inspection(inspected: Inspection, tokenizer: str) -> RenderableType:
    """Returns the screen of an inspected source."""
    of_all = f"{inspected.rows:,} rows" if inspected.complete else f"the first {inspected.rows:,} rows"
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="cyan", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("source", f"{inspected.source.line()} ({of_all})")
    facts.add_row("shape", inspected.shape.replace("_", " + "))
    if inspected.columns:
        facts.add_row("columns", ", ".join(f"{part}: {column}" for part, column in inspected.columns.items()))
    if inspected.prompt:
        facts.add_row("prompt", inspected.prompt.replace("\n", "⏎ "))
    if inspected.labels:
        total = sum(inspected.labels.values())
        facts.add_row(
            "labels",
            ", ".join(f"{word} {count:,} ({count / total:.1%})" for word, count in inspected.labels.items()),
        )
    for name, value in texts_rows(inspected.texts) if inspected.texts else ():
        facts.add_row(name, value)
    facts.add_row("tokens of", tokenizer)
    for note in inspected.notes:
        facts.add_row("note", Text(note, style="yellow"))
    if not inspected.lengths:
        return facts
    measured = len(inspected.lengths["row"])
    parts: list[RenderableType] = [facts, Text()]
    parts += [Learned("one row", inspected.sample), Text()]
    table = Table(
        "tokens",
        *(f"{p} %" if p < 100 else "longest" for p in PERCENTILES),
        title_justify="left",
        title=f"lengths of {measured:,} rows",
    )
    for part, values in inspected.percentiles.items():
        table.add_row(part, *(f"{value:,}" for value in values))
    parts += [table, histogram(inspected.lengths["row"]), Text()]
    fits = Table(
        "max_length",
        "rows that fit",
        "padded to it",
        "to the longest of 8",
        "packed",
        title_justify="left",
        title="padding at each length",
    )
    for fit in inspected.fits:
        mark = "bold" if fit.length == inspected.suggested[0] else ""
        shares = (fit.fits, fit.padded, fit.longest, fit.packed)
        fits.add_row(f"{fit.length:,}", *(f"{share:.1%}" for share in shares), style=mark)
    parts += [
        fits,
        Text(f"suggested max_length: {inspected.suggested[0]:,} ({inspected.suggested[1]})", style="bold"),
    ]
    return Group(*parts)


class Learned:
    """A rendered row: what is learned is green, or between « and » where there are no colours; long pieces
    lose their middle.

    Args:
        title: what it is.
        pieces: of its text, and whether they are learned.
    """

    def __init__(self, title: str, pieces: list[tuple[str, bool]]):
        self.title, self.pieces = title, pieces

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colours = bool(console.color_system) and not console.no_color
        yield Text(
            f"{self.title}; what is learned {'is green' if colours else 'stands between « and »'}",
            style="bold",
        )
        text = Text()
        for piece, learned in self.pieces:
            if len(piece) > SHOWN:
                piece = f"{piece[: SHOWN // 2]} [...] {piece[-SHOWN // 2 :]}"
            marked = f"«{piece}»" if learned and not colours else piece
            text.append(marked, style="green" if learned else "dim")
        yield text


def histogram(lengths: np.ndarray) -> Table:
    """Returns the lengths as bars, in bins of equal width on a logarithmic scale."""
    low, high = max(1, int(lengths.min())), int(lengths.max())
    edges = np.unique(np.geomspace(low, high + 1, BARS + 1).astype(int))
    counts, edges = np.histogram(lengths, edges if len(edges) > 1 else [low, low + 1])
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="cyan")
    table.add_column()
    table.add_column(justify="right")
    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
        width = 40 * count / counts.max()
        bar = "█" * int(width) + ("▌" if width - int(width) >= 0.5 else "")
        table.add_row(f"{start:,} to {end - 1:,}" if end - start > 1 else f"{start:,}", bar, f"{count:,}")
    return table


def found_datasets(word: str = "") -> list[Entry]:
    """Returns the known datasets whose id, domain, shape or stage contains a word.

    Raises:
        LabError: when there is none.
    """
    wanted = real_id(word).lower()
    shown = [
        dataset
        for dataset in CATALOGUE
        if wanted in " ".join([dataset.id, dataset.domain, dataset.becomes, *dataset.stages]).lower()
    ]
    if not shown:
        raise LabError(
            f"the catalogue has no entry for {word!r}", remedy="any dataset works: `llmlab data inspect NAME`"
        )
    return shown


def catalogue(word: str = "") -> Table:
    """Returns the known datasets whose id, domain, shape or stage contains a word, as a table.

    Raises:
        LabError: when there is none.
    """
    shown = found_datasets(word)
    table = Table(show_header=True)
    table.add_column("dataset", overflow="fold", ratio=5)
    table.add_column("format, rows and methods", overflow="fold", ratio=6)
    for dataset in shown:
        name, about = (
            Text(dataset.id),
            styled("{} · {} · [cyan]{}[/cyan]", dataset.becomes, dataset.rows, ", ".join(dataset.stages)),
        )
        if dataset.subsets:
            name.append("\n" + ", ".join(dataset.subsets), style="dim")
        if dataset.note:
            about.append("\n" + dataset.note, style="dim")
        table.add_row(name, about)
    return table


def about(dataset: Entry) -> Table:
    """Returns all that is known of one dataset."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("dataset", dataset.id)
    for title, values in (
        ("subsets", dataset.subsets),
        ("splits", dataset.splits),
        ("stages", dataset.stages),
    ):
        if values:
            table.add_row(title, ", ".join(values))
    table.add_row("rows", dataset.rows)
    table.add_row("domain", dataset.domain)
    for reading in dataset.mappings:
        table.add_row("becomes", reading.shape.replace("_", " + "))
        if reading.columns:
            table.add_row(
                "  columns", ", ".join(f"{part}: {column}" for part, column in reading.columns.items())
            )
        if reading.prompt:
            table.add_row("  prompt", reading.prompt.replace("\n", "⏎ "))
        if reading.labels:
            table.add_row(
                "  labels", ", ".join(f"{number} {word}" for number, word in enumerate(reading.labels))
            )
        if reading.parser:
            table.add_row("  read by", (reading.parser.__doc__ or "").split("\n")[0].removeprefix("Returns "))
    if dataset.streamed:
        table.add_row("size", "large: set `streaming` to true")
    if dataset.note:
        table.add_row("note", dataset.note)
    return table


def sources_table(looks: list[SourceLook]) -> Table:
    """Returns each source of a run as a look at its first rows found it."""
    table = Table("data", "share", "rows", "read as", title_justify="left")
    for look in looks:
        share = "held out" if look.share is None else f"{look.share:.1%}"
        if look.opened is None:
            rows = look.known.rows if look.known else "?"
            becomes = f"{look.known.becomes if look.known else '?'} (on the hub)"
        else:
            count, shape = look.opened
            rows, becomes = "streamed" if count is None else f"{count:,}", shape.replace("_", " + ")
        table.add_row(look.source.line(), share, rows, becomes)
    return table


def show_catalogue(console: Console, word: str = "") -> None:
    """Prints one dataset when the word names it, else the table."""
    source = validate(SourceConfig, word) if word else None
    dataset = entry(source.name, source.subset) if source else None
    console.print(about(dataset) if dataset else catalogue(word))
