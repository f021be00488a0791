"""The documents of one source in order, from any place on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmlab.data.pipeline import SourceRows
from llmlab.data.schemas import InvalidRow, Row
from llmlab.data.sources import CONTINUES, GOES_ON, damaged
from llmlab.data.stream_position import SourcePosition
from llmlab.errors import LabError

HEAD = 5000  # rows of a stream that are looked through for held-out ones
BATCH = 100  # rows read at once; a resumed stream reads at most so many again


@dataclass(frozen=True, slots=True)
class Document:
    """What is tokenised: a text, or a canonical row of another shape.

    Attributes:
        row: canonical.
        number: of the row in its source.
        source: where it comes from.
        counted: whether it is taken from there for the first time.
        goes_on: whether the next row of a text file is the same document: no end of text follows then.
        continues: whether the row before it is.
    """

    row: Row
    number: int
    source: SourceRows
    counted: bool = True
    goes_on: bool = False
    continues: bool = False

    def drop(self, invalid: InvalidRow) -> None:
        """Leaves it out: it cannot be tokenised.

        Raises:
            LabError: when it is malformed and its source's `bad_rows` says to stop there.
        """
        self.source.drop(self.number, invalid, count=self.counted)

    @property
    def characters(self) -> int:
        """Its size."""
        if "text" in self.row:
            return len(self.row["text"])
        turns = self.row.get("messages") or self.row["prompt"]
        return sum(len(turn["content"]) for turn in turns) + len(self.row.get("completion", ""))


Window = list[Document]


class Reader:
    """The documents of one source in order, from any place on;
    `passes` counts how often it ran out and began again.

    Args:
        source: its rows.
        head_only: whether it ends after `HEAD` rows.
    """

    def __init__(self, source: SourceRows, *, head_only: bool = False):
        opened = source.opened
        self.source, self.head_only = source, head_only
        self.rows: Any = opened.rows if opened.is_stream else opened.rows.to_iterable_dataset()
        self.passes = 0
        self._begin()

    def _begin(self) -> None:
        self._number = 0  # rows read in this pass
        self._mark: dict[str, Any] = {"number": 0, "library": None}
        self._batch: deque[Row] = deque()
        self._batches: Iterator[dict[str, list[Any]]] | None = None

    def restart(self) -> None:
        """Goes to the beginning; rows are counted no more."""
        self.passes = 0
        self.source.stop_counting()
        self._begin()

    def next(self) -> Document:
        """Returns the next document.

        Raises:
            StopIteration: when the source is exhausted; the next call begins again.
        """
        while (raw := self._raw()) is not None:
            number = self._number - 1
            if (row := self.source.take(number, raw)) is not None:
                goes_on, continues = (raw.get(name) is True for name in (GOES_ON, CONTINUES))
                return Document(row, number, self.source, self.source.counting, goes_on, continues)
        self.passes += 1
        self.source.stop_counting()
        self._begin()
        raise StopIteration

    def position(self) -> SourcePosition:
        """Returns the place."""
        return SourcePosition(self.passes, self._number, self._mark)

    def restore(self, place: SourcePosition) -> None:
        """Goes to a place; at most a batch of rows is read again."""
        self._begin()
        self.passes, self._mark, self._number = place.passes, place.mark, place.mark["number"]
        if place.passes:
            self.source.stop_counting()
        while self._number < place.number and self._raw() is not None:
            pass

    def _raw(self) -> Row | None:
        """Returns the next row as the source has it; None at its end."""
        if self._batches is None:
            self.rows.load_state_dict(self._mark["library"])
            self._batches = self.rows.iter(batch_size=BATCH)  # unlike iter(), whole in every loader process
        assert self._batches is not None
        try:
            if not self._batch:
                self._mark = {
                    "number": self._number,
                    "library": self.rows.state_dict() if self._number else None,
                }
                columns = next(self._batches)
                self._batch.extend(
                    dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
                )
        except StopIteration:
            return None
        except LabError:
            raise
        except Exception as error:  # the readers of datasets raise many kinds
            raise damaged(self.source.opened.config, error) from None
        if self.head_only and self._number >= HEAD:
            return None
        self._number += 1
        return self._batch.popleft()
