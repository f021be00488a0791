"""The screens of data that one can trust: what a copy leaves out, which evaluation rows are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmlab.data.cleaning import CleaningReport
from llmlab.data.contamination import Contamination, named
from llmlab.data.text_profile import TextProfile

SHOWN = 60  # characters of an example
LANGUAGES = 6  # that are named


def texts_rows(texts: TextProfile) -> Iterator[tuple[str, str]]:
    """Yields (what, how much) of the texts of an inspected source."""
    words = {int(percentile): count for percentile, count in texts.words.items()}
    yield (
        "words",
        (
            f"half of the rows have at most {words[50]:,}; 5 % at most {words[5]:,}, 95 % at most"
            f" {words[95]:,}, the longest {words[100]:,}"
        ),
    )
    yield "language", languages_in_words(texts.languages)
    if texts.near_duplicates:
        yield (
            "near",
            (
                f"{texts.near_duplicates:,} of the first {texts.compared:,} rows are near duplicates:"
                " `llmlab data clean` leaves them out"
            ),
        )


def languages_in_words(languages: dict[str, int]) -> str:
    """Returns the shares of the languages, the most frequent first."""
    total = sum(languages.values())
    named = list(languages.items())[:LANGUAGES]
    parts = [f"{language} {count / total:.1%}" for language, count in named]
    rest = len(languages) - len(named)
    return ", ".join(parts) + (f" and {rest} more" if rest else "")


def cleaning_report(report: CleaningReport, path: Path) -> RenderableType:
    """Returns what became of the rows, by reason, with the first row of each."""
    table = Table("left out", "rows", "the first", title_justify="left")
    table.columns[1].justify = "right"
    for reason, one in report.left_out.items():
        example = one.examples[0]
        first = f"row {example['row']:,}"
        if "kept_row" in example:
            first += f", as row {example['kept_row']:,} ({example['likeness']:.2f})"
        if "language" in example:
            first += f" ({example['language']})"
        table.add_row(reason, f"{len(one.rows):,}", f"{first}: {_short(example['text'])}")
    share = f"{report.kept:,} of {report.read:,} rows ({report.kept / report.read:.1%})"
    parts: list[RenderableType] = [Text(f"{share} in {report.output}", style="bold")]
    if report.left_out:
        parts.append(table)
    if report.languages:
        parts.append(Text(f"languages: {languages_in_words(report.languages)}"))
    if report.evaluation:
        parts.append(overlap_table(report.evaluation))
    parts.append(Text(f"row numbers and examples: {path}", style="dim"))
    return Group(*parts)


def overlap_table(found: list[Contamination]) -> RenderableType:
    """Returns how many rows of each evaluation set stand in the training data, with examples."""
    table = Table("evaluation set", "rows", "share 13 words", "stand in it", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    examples = Table("evaluation row", "training row", "of it", "first words shared", title_justify="left")
    for column in examples.columns[:3]:
        column.justify = "right"
    for one in found:
        shares = (f"{count:,} ({count / max(1, one.rows):.1%})" for count in (one.touched, one.contained))
        table.add_row(named(one.source), f"{one.rows:,}", *shares)
        for row in one.examples:
            examples.add_row(f"{row.row:,}", f"{row.training_row:,}", f"{row.share:.0%}", _short(row.phrase))
    rule = (
        "share 13 words: in a row, without case and punctuation (a row of 8 to 12 words: all of it; of fewer:"
        " the whole training row). stand in it: at least 80 % of the row's words are in such phrases."
    )
    parts: list[RenderableType] = [table, Text(rule, style="dim")]
    if ignored := sum(one.ignored for one in found):
        parts.append(
            Text(
                f"{ignored:,} phrases are the wording of the task (in more than 10 rows) and ignored",
                style="dim",
            )
        )
    if examples.row_count:
        parts.append(examples)
    return Group(*parts)


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= SHOWN else f"{plain[: SHOWN - 1]}…"
