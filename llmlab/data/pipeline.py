"""The path of a row, the same for every method: read, map, filter, dedupe, split, tokenise.

| stage | what it does | options |
| --- | --- | --- |
| read | the source's own rows, each with its number | `name` `subset` `split` `streaming` `max_rows` |
| map | its columns -> a canonical row, or an `InvalidRow` | `format` `columns` `prompt` `labels` `like` |
| filter | what is malformed ends the run or is left out, and what has nothing to teach | `bad_rows` |
| dedupe | a row that repeats an earlier one is counted, or left out | `duplicates` |
| split | held out by its number alone | `eval_fraction` |
| tokenise | a canonical row -> token ids, or an `InvalidRow` | `max_length` `on_overflow` `loss_on` |

`SourceRows` does all but the last for rows that are read one by one: text, streams, prompts, evaluation, what
a tokenizer is trained on. `tokens.tokenised` does it for conversations and pairs, whose rows are mapped and
tokenised in parallel and then filtered, compared and split together. Rows are compared by a hash of 8 bytes
of the canonical row. Whatever is left out is counted with its reason: `RowCounter`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.config import SourceConfig
from llmlab.data.counting import REPEATED, RowCounter, SourceCounts
from llmlab.data.mixture import is_held_out
from llmlab.data.opening import OpenSource, each_row, open_source
from llmlab.data.schemas import InvalidRow, Row
from llmlab.errors import LabError

if TYPE_CHECKING:
    from datasets import Dataset

    from llmlab.data.stream import PackedStream


@dataclass
class Prepared:
    """Training and validation rows, and what is known of them.

    Attributes:
        train: rows for the trainer.
        eval: held-out rows of each source by its name; empty where nothing is held out.
        facts: counts for the run record and the screen (rows, tokens, dropped ...).
        bytes_per_token: of the held-out text of each source, for bits per byte; empty where it is not plain
            text.
        notes: what happened to rows that were left out or changed, one line each.
        sources: what became of the rows of each stored source, training sources first.
    """

    train: Dataset | PackedStream
    eval: dict[str, Dataset]
    facts: dict[str, Any] = field(default_factory=dict)
    bytes_per_token: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sources: list[SourceCounts] = field(default_factory=list)


class SourceRows:
    """The rows of one source on their way to the tokenizer: mapped, filtered, deduplicated, split.

    Args:
        opened: the source.
        fraction: of its rows that are held out.
        held_out: whether these are wanted, or the others.
        compare: whether rows that are there twice are counted; left out, where the source is stored.

    Attributes:
        counting: whether rows are counted: not when they come again.
    """

    def __init__(
        self,
        opened: OpenSource,
        *,
        fraction: float = 0.0,
        held_out: bool = False,
        compare: bool | None = None,
    ):
        self.opened, self.fraction, self.held_out = opened, fraction, held_out
        self.counter = RowCounter()
        source = opened.config
        self._repeats = repeated_rows(opened) if source.duplicates == "drop" else frozenset[int]()
        compare = not source.streaming if compare is None else compare
        self._keys = _Keys() if source.duplicates == "keep" and compare else None
        self.counting = True
        self._unusable: set[int] = set()  # rows that were read, and dropped by a later stage

    @classmethod
    def of(cls, source: SourceConfig, needed: tuple[str, ...], **how: Any) -> SourceRows:
        """Returns the rows of a source that is opened for them, as one of the needed shapes.

        Raises:
            LabError: when the source cannot be read, or its columns fit no needed shape.
        """
        return cls(open_source(source, needed, **how))

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        """Yields number and canonical row of all rows that are not left out."""
        for number, raw in enumerate(each_row(self.opened.rows)):
            if (row := self.take(number, raw)) is not None:
                yield number, row

    def first(self, count: int | None) -> list[Row]:
        """Returns at most `count` canonical rows; None for all."""
        return [row for _, row in islice(self, count)]

    def take(self, number: int, raw: Row) -> Row | None:
        """Returns the canonical row; None for one that is left out, or is on the other side of the split.

        Raises:
            LabError: when it is malformed and the source's `bad_rows` says to stop there.
        """
        if self.counting:
            self.counter.read += 1
        if self.fraction and split(np.array([number]), self.fraction)[0] != self.held_out:
            self.counter.held_out += self.counting
            return None
        if number in self._repeats:
            self._leave_out(number, REPEATED)
            return None
        try:
            row = self.opened.mapping(raw)
        except InvalidRow as invalid:
            self.opened.refuse_malformed(number, invalid)
            self._leave_out(number, invalid.reason)
            return None
        if self._keys is not None and self.counting:
            self._keys.add(number, row)
        return row

    def drop(self, number: int, invalid: InvalidRow, *, count: bool = True) -> None:
        """Leaves out a row that was taken, and that a later stage cannot use.

        Args:
            number: of the row.
            invalid: what is wrong with it.
            count: whether it was taken for the first time.

        Raises:
            LabError: when it is malformed and the source's `bad_rows` says to stop there.
        """
        self.opened.refuse_malformed(number, invalid)
        if count:
            self.counter.add(invalid.reason, number)
            self._unusable.add(number)

    def _leave_out(self, number: int, reason: str) -> None:
        if self.counting:
            self.counter.add(reason, number)

    def stop_counting(self) -> None:
        """Counts no more: the rows that come have been counted before."""
        self.counting = False

    def result(self) -> RowCounter:
        """Returns what became of the rows so far, those that are there twice among them."""
        counter = self.counter.copy()
        if self._keys is not None:
            again = [number for number in self._keys.repeats() if number not in self._unusable]
            if again:
                counter.add(REPEATED, again[0], len(again), verb="kept")
        return counter

    def notes(self) -> list[str]:
        """Returns a line for each reason why rows were left out, and one for rows that are there twice."""
        return self.result().notes(self.opened.config)


class _Keys:
    """Hashes of rows, 16 bytes a row with its number."""

    def __init__(self) -> None:
        self.numbers, self.keys = array("q"), array("q")

    def add(self, number: int, row: Row) -> None:
        self.numbers.append(number)
        self.keys.append(content_key(row))

    def repeats(self) -> list[int]:
        numbers = np.frombuffer(self.numbers, np.int64) if self.numbers else np.empty(0, np.int64)
        keys = np.frombuffer(self.keys, np.int64) if self.keys else np.empty(0, np.int64)
        repeated: list[int] = numbers[repeats(keys)].tolist()
        return repeated


def content_key(row: Row) -> int:
    """Returns a hash of a canonical row: 8 bytes as a signed number."""
    return int.from_bytes(sha256(repr(row).encode()).digest()[:8], "big", signed=True)


def repeats(keys: np.ndarray) -> np.ndarray:
    """Returns the places of the keys that are those of an earlier row, in order."""
    later = np.ones(len(keys), bool)
    later[np.unique(keys, return_index=True)[1]] = False
    return np.flatnonzero(later)


def repeated_rows(opened: OpenSource) -> frozenset[int]:
    """Returns the numbers of the rows that repeat an earlier one: known before they are read, so that a
    resumed run leaves them out as well.
    """
    keys = _Keys()
    for number, raw in enumerate(each_row(opened.rows)):
        try:
            keys.add(number, opened.mapping(raw))
        except InvalidRow as invalid:
            opened.refuse_malformed(number, invalid)
    return frozenset(keys.repeats())


def split(numbers: np.ndarray, fraction: float) -> np.ndarray:
    """Returns which rows are held out: by their number in the source alone, so that neither a seed nor the
    next stage of training moves a row across.
    """
    return is_held_out(numbers, fraction)


def refuse_stream(source: SourceConfig) -> None:
    """Refuses a streamed source where a method stores its rows.

    Raises:
        LabError: naming the source.
    """
    if source.streaming:
        raise LabError(
            "cannot be streamed for this method", where=source.name, remedy="set `streaming` to false"
        )
