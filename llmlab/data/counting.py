"""What became of the rows of a source: how many were read, left out and why, cut, held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

from llmlab.config import SourceConfig
from llmlab.data.local import row_place

REPEATED = "the same as an earlier row"


class SourceCounts(TypedDict):
    """Rows of one source; `read` is the sum of the others.

    Attributes:
        source: its line.
        read: rows that were looked at.
        left_out: reason -> rows.
        held_out: rows for validation.
        kept: rows for training.
    """

    source: str
    read: int
    left_out: dict[str, int]
    held_out: int
    kept: int


@dataclass
class RowCounter:
    """Rows that were left out or changed: what happened and why -> how many, and the first one's number
    (from 0).

    Attributes:
        read: rows that were looked at.
        held_out: rows for validation.
    """

    read: int = 0
    held_out: int = 0
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    first: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, reason: str, number: int, count: int = 1, *, verb: str = "left out") -> None:
        """Counts rows; "left out" is what the others (kept, cut) are not."""
        key = (verb, reason)
        self.counts[key] = self.counts.get(key, 0) + count
        self.first.setdefault(key, number)

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> rows that were left out."""
        return {reason: count for (verb, reason), count in self.counts.items() if verb == "left out"}

    @property
    def dropped(self) -> int:
        """Rows that were left out."""
        return sum(self.left_out.values())

    def copy(self) -> RowCounter:
        """Returns the same counts, which go on by themselves."""
        return RowCounter(self.read, self.held_out, dict(self.counts), dict(self.first))

    def to_json(self) -> dict[str, Any]:
        """Returns the counts as JSON data: where the rows lie is told by `notes`, for the source as it is
        called then.
        """
        rows = [
            [verb, reason, count, self.first[verb, reason]] for (verb, reason), count in self.counts.items()
        ]
        return {"read": self.read, "held_out": self.held_out, "rows": rows}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RowCounter:
        """Returns what `to_json` wrote."""
        counter = cls(data["read"], data["held_out"])
        for verb, reason, count, first in data["rows"]:
            counter.add(reason, first, count, verb=verb)
        return counter

    def notes(self, source: SourceConfig) -> list[str]:
        """Returns one line for each reason, with the place of the first row."""
        return [
            f"{verb} {count:,} row{'s' if count > 1 else ''}: {reason}"
            f" (first: {row_place(source, self.first[verb, reason])})"
            for (verb, reason), count in self.counts.items()
        ]

    def of(self, source: SourceConfig) -> SourceCounts:
        """Returns the counts for the record of a run."""
        remaining = self.read - self.dropped - self.held_out
        return SourceCounts(
            source=source.line(),
            read=self.read,
            left_out=self.left_out,
            held_out=self.held_out,
            kept=remaining,
        )


def told(facts: dict[str, Any], sources: list[SourceConfig]) -> tuple[list[str], list[SourceCounts]]:
    """Returns the notes and the counts of sources from what is stored with their rows: `counters`, or `notes`
    alone where an older version stored them.
    """
    if "counters" not in facts:
        return facts["notes"], []
    counters = [RowCounter.from_json(data) for data in facts["counters"]]
    pairs = list(zip(counters, sources, strict=True))
    return [note for counter, source in pairs for note in counter.notes(source)], [
        counter.of(source) for counter, source in pairs
    ]
