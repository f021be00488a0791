"""A cleaned copy of a source, with a report of what was left out and why.

The source is read twice: first each row is measured (`row_profile`), then the rows that stay are written as
they are. Between the passes memory holds some 100 bytes a row and 4 bytes for each of its bands, whatever
its length; signatures lie in a file beside the copy that has no name, so that it is gone with the process.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.config import SourceConfig
from llmlab.data.contamination import (
    COMMON,
    FEWEST,
    PHRASE,
    Contamination,
    EvaluationPhrases,
    named,
    row_texts,
)
from llmlab.data.counting import REPEATED
from llmlab.data.language import UNKNOWN
from llmlab.data.local import local_files
from llmlab.data.near_duplicates import PERMUTATIONS, SHINGLE, Near, Signatures, near_duplicates
from llmlab.data.opening import OpenSource, each_row, open_source
from llmlab.data.pipeline import content_key
from llmlab.data.row_profile import RowProfile, Wanted, profiles
from llmlab.data.schemas import SHAPES, InvalidRow, Row
from llmlab.data.sources import CONTINUES, GOES_ON, open_text
from llmlab.data.words import row_text
from llmlab.errors import LabError
from llmlab.files import written_whole

EXAMPLES = 3  # of each reason, in the report
SHOWN = 200  # characters of an example
NEARLY = "nearly the same as a row that is kept"
EVALUATED = "stands in an evaluation set"
FOREIGN = "another language"
TOLD_EVERY = 500  # rows


@dataclass(frozen=True)
class Cleaning:
    """What is left out of a copy.

    Attributes:
        near: likeness from which on rows are near duplicates; 0 keeps them.
        against: evaluation sets that must not stand in the copy.
        languages: codes of the languages that stay; empty for all. Rows that cannot be told stay.
        min_words: of a row.
        max_words: of a row; 0 for no limit.
        processes: that measure rows.
    """

    near: float = 0.8
    against: tuple[SourceConfig, ...] = ()
    languages: tuple[str, ...] = ()
    min_words: int = 0
    max_words: int = 0
    processes: int = 1


@dataclass
class LeftOut:
    """The rows of one reason; rows are counted from 1.

    Attributes:
        rows: their numbers.
        kept_rows: of duplicates, the row that is kept for each.
        examples: the first ones: row, the start of its text, its language or the row that is kept for it.
    """

    rows: list[int] = field(default_factory=list)
    kept_rows: list[int] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class CleaningReport:
    """What became of the rows of a source.

    Attributes:
        source: what was read.
        output: the copy; None where none was written.
        settings: what was left out, as data.
        read: rows.
        kept: rows.
        left_out: reason -> rows.
        languages: language -> rows, where it was asked for.
        evaluation: what of each evaluation set stands in the source.
    """

    source: SourceConfig
    output: Path | None
    settings: dict[str, Any]
    read: int = 0
    kept: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    evaluation: list[Contamination] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON data; it holds no times, so that the same rows give the same report."""
        return {
            "source": named(self.source),
            "output": str(self.output) if self.output else None,
            "settings": self.settings,
            "read": self.read,
            "kept": self.kept,
            "left_out": {
                reason: {"count": len(one.rows), **vars(one)} for reason, one in self.left_out.items()
            },
            "languages": self.languages,
            "evaluation": [one.to_json() for one in self.evaluation],
        }


def report_path(output: Path) -> Path:
    """Returns where the report of a copy lies."""
    return output.with_name(f"{output.stem}.report.json")


def clean(
    source: SourceConfig, output: Path, cleaning: Cleaning, tell: Callable[[int], None] = lambda read: None
) -> CleaningReport:
    """Writes the rows of a source that stay, as JSON lines with their own columns, and a report beside them.
    Both are there whole, or not at all.

    Args:
        source: what is read.
        output: a file whose name ends in `.jsonl`.
        cleaning: what is left out.
        tell: is told how many rows were measured.

    Returns:
        The report.

    Raises:
        LabError: when a source cannot be read, the copy would replace it, or nothing stays.
    """
    _refuse_output(source, output)
    opened = open_source(source, SHAPES)
    evaluation = EvaluationPhrases(cleaning.against) if cleaning.against else None
    with written_whole(output) as copy, written_whole(report_path(output)) as report_file:
        with closing(Signatures(output.parent)) as signatures:
            found = _measured(opened, cleaning, evaluation, signatures, tell)
        report = CleaningReport(source, output, _settings(cleaning), read=found.read)
        report.kept = found.read - len(found.reasons)
        report.languages = dict(sorted(found.languages.items(), key=lambda item: (-item[1], item[0])))
        report.evaluation = evaluation.result() if evaluation else []
        if not report.kept:
            raise LabError("no row would stay", where=source.name, remedy="ask for less")
        for number, (raw, line) in enumerate(_as_they_are(opened)):
            if number not in found.reasons:
                copy.write(line)
                continue
            reason = found.reasons[number]
            one = report.left_out.setdefault(reason, LeftOut())
            one.rows.append(number + 1)
            if near := found.near.get(number):
                one.kept_rows.append(near.kept + 1)
            if len(one.examples) < EXAMPLES:
                one.examples.append(_example(opened, raw, number, found))
        report.left_out = dict(
            sorted(report.left_out.items(), key=lambda item: (-len(item[1].rows), item[0]))
        )
        report_file.write(json.dumps(report.to_json(), ensure_ascii=False, indent=2) + "\n")
    return report


def _refuse_output(source: SourceConfig, output: Path) -> None:
    if output.suffix != ".jsonl":
        raise LabError(
            "is written as JSON lines", where=str(output), remedy="give it a name that ends in .jsonl"
        )
    if output.resolve() in (file.resolve() for file in local_files(source.name, source.split)):
        raise LabError("is read from", where=str(output), remedy="choose another file with -o")


def _settings(cleaning: Cleaning) -> dict[str, Any]:
    near = {"near": cleaning.near, "near_shingle_words": SHINGLE, "near_permutations": PERMUTATIONS}
    phrases = {"phrase_words": PHRASE, "fewest_phrase_words": FEWEST, "common_phrase_rows": COMMON}
    return {
        **(near if cleaning.near else {}),
        **(phrases if cleaning.against else {}),
        "against": [named(source) for source in cleaning.against],
        "languages": list(cleaning.languages),
        "min_words": cleaning.min_words,
        "max_words": cleaning.max_words,
    }


@dataclass
class _Found:
    """What the first pass found: numbers from 0.

    Attributes:
        read: rows.
        reasons: number -> why a row is left out.
        near: number -> the row that stays for it.
        foreign: number -> the language it is left out for.
        languages: language -> rows.
    """

    read: int = 0
    reasons: dict[int, str] = field(default_factory=dict)
    near: dict[int, Near] = field(default_factory=dict)
    foreign: dict[int, str] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)


def _measured(
    opened: OpenSource,
    cleaning: Cleaning,
    evaluation: EvaluationPhrases | None,
    signatures: Signatures,
    tell: Callable[[int], None],
) -> _Found:
    found = _Found()
    numbers, keys = array("q"), array("q")  # of the rows that are mapped, in order

    def texts() -> Iterator[str]:
        for number, raw in enumerate(each_row(opened.rows)):
            found.read += 1
            try:
                row = opened.mapping(raw)
            except InvalidRow as invalid:
                opened.refuse_malformed(number, invalid)
                found.reasons[number] = invalid.reason
                continue
            numbers.append(number)
            keys.append(content_key(row))
            yield row_text(opened.mapping, raw, row)

    table = evaluation.table if evaluation else None
    wanted = Wanted(bool(cleaning.languages), bool(cleaning.near), table)
    first: dict[int, int] = {}  # of each content: its number
    compared, sizes = array("q"), array("q")  # rows that have a signature
    contents = array("q")
    for place, measured in enumerate(profiles(texts(), wanted, cleaning.processes)):
        number, key = numbers[place], keys[place]
        if place % TOLD_EVERY == 0:
            tell(number)
        if cleaning.languages:
            found.languages[measured.language] = found.languages.get(measured.language, 0) + 1
        if evaluation and measured.found is not None and len(measured.found):
            evaluation.add(number, measured.found)
        if reason := _reason(measured, cleaning):
            found.reasons[number] = reason
            if reason == FOREIGN:
                found.foreign[number] = measured.language
        elif (kept := first.setdefault(key, number)) != number:
            found.reasons[number] = REPEATED
            found.near[number] = Near(kept, 1.0)
        elif measured.signature is not None:
            signatures.add(measured.signature)
            compared.append(number)
            sizes.append(measured.words)
            contents.append(key)
    if cleaning.near and len(compared):
        order = np.lexsort((np.array(contents), -np.array(sizes)))
        for place, near in near_duplicates(signatures.array(), order, cleaning.near).items():
            found.reasons[compared[place]] = NEARLY
            found.near[compared[place]] = Near(compared[near.kept], near.likeness)
    for number, near in found.near.items():  # the same as a row that is left out for another one
        found.near[number] = found.near.get(near.kept, near) if near.kept in found.reasons else near
    return found


def _reason(measured: RowProfile, cleaning: Cleaning) -> str:
    """Returns why a row is left out for itself; "" where it is not."""
    if measured.words < cleaning.min_words:
        return f"fewer than {cleaning.min_words:,} words"
    if cleaning.max_words and measured.words > cleaning.max_words:
        return f"more than {cleaning.max_words:,} words"
    if cleaning.languages and measured.language not in (*cleaning.languages, UNKNOWN):
        return FOREIGN
    return EVALUATED if measured.found is not None and len(measured.found) else ""


def _example(opened: OpenSource, raw: Row, number: int, found: _Found) -> dict[str, Any]:
    try:
        text = row_text(opened.mapping, raw, opened.mapping(raw))
    except InvalidRow:
        text = ""
    example: dict[str, Any] = {"row": number + 1, "text": text[:SHOWN]}
    if language := found.foreign.get(number):
        example["language"] = language
    if near := found.near.get(number):
        example |= {"kept_row": near.kept + 1, "likeness": round(near.likeness, 3)}
    return example


def _as_they_are(opened: OpenSource) -> Iterator[tuple[Row, str]]:
    """Yields each row with its line of the copy: of JSON lines the line itself, since datasets adds the
    columns of other rows to each.
    """
    source, rows = opened.config, each_row(opened.rows)
    files = local_files(source.name, source.split)
    if source.max_rows is None and files and all(".jsonl" in file.suffixes for file in files):
        count = None if opened.is_stream else len(opened.rows)
        if count is None or count == sum(
            1 for file in files for _ in _lines(file)
        ):  # not so of trees of messages
            lines = (line for file in files for line in _lines(file))
            yield from zip(rows, lines, strict=True)
            return
    for raw in rows:
        yield raw, json.dumps(_plain(source, raw), ensure_ascii=False) + "\n"


def _lines(file: Path) -> Iterator[str]:
    with open_text(file) as lines:
        for line in lines:
            if line.strip():
                yield line if line.endswith("\n") else f"{line}\n"


def _plain(source: SourceConfig, raw: Row) -> Row:
    """Returns a row without the columns that the lab adds to text files, dates as texts.

    Raises:
        LabError: when a value is no JSON: an image, bytes.
    """

    def as_json(value: Any) -> Any:
        if hasattr(value, "isoformat"):
            return value.isoformat()
        raise LabError(
            f"holds {type(value).__name__}, which JSON lines cannot hold",
            where=source.name,
            remedy="take that column out first",
        )

    kept = {name: value for name, value in raw.items() if name not in (GOES_ON, CONTINUES)}
    return dict(json.loads(json.dumps(kept, default=as_json)))


def overlap(
    train: Iterable[SourceConfig],
    against: tuple[SourceConfig, ...],
    processes: int = 1,
    tell: Callable[[int], None] = lambda read: None,
) -> list[Contamination]:
    """Returns what of each evaluation set stands in training data.

    Args:
        train: sources whose rows are numbered one after the other.
        against: the evaluation sets.
        processes: that search.
        tell: is told how many rows were searched.

    Raises:
        LabError: when a source cannot be read.
    """
    sources = [open_source(source, SHAPES) for source in train]
    evaluation = EvaluationPhrases(against)
    numbers = array("q")

    def texts() -> Iterator[str]:
        before = 0
        for opened in sources:
            number = -1
            for number, text in row_texts(opened):
                numbers.append(before + number)
                yield text
            before += number + 1

    wanted = Wanted(phrases=evaluation.table)
    for place, measured in enumerate(profiles(texts(), wanted, processes)):
        if measured.found is not None and len(measured.found):
            evaluation.add(numbers[place], measured.found)
        if place % TOLD_EVERY == 0:
            tell(numbers[place])
    return evaluation.result()
