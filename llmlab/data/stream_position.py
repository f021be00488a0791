"""Places in a stream, as plain JSON data in a checkpoint: of the packed row, of its window, in each source.

A stream is packed window by window, and of several loader processes each packs windows of its own: those
whose number leaves the same remainder, its lane. A place is known for every row that was given, so that a run
that is resumed begins at the window in which it stopped, in every lane, and reads nothing before it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class SourcePosition:
    """The place in one source: before its row `number`.

    Attributes:
        passes: how often the source ran out and began again.
        number: rows read in this pass.
        mark: a place at most a batch of rows before: `number`, and `library`, the state of datasets' own
            stream there (None at the beginning).
    """

    passes: int = 0
    number: int = 0
    mark: dict[str, Any] = field(default_factory=lambda: {"number": 0, "library": None})


@dataclass(frozen=True)
class WindowPosition:
    """The place before a window.

    Attributes:
        position: in the mixture.
        done: numbers of the sources that ran out in this pass over the mixture.
        readers: places in the sources.
        number: windows before it, of all lanes.
        rounds: whole passes over the mixture before it; what is left out is counted in the first one.
    """

    position: int
    done: tuple[int, ...]
    readers: tuple[SourcePosition, ...]
    number: int = 0
    rounds: int = 0


@dataclass(frozen=True)
class StreamPosition:
    """The place behind a packed row of one lane.

    Attributes:
        rows: given in this lane.
        inside: rows given of the window `windows`; more than it has reach into the lane's next ones.
        windows: the place before the window; None at the beginning of the stream.
        lane: which one.
        left_out: reason -> source rows that this lane's windows left out.
    """

    rows: int = 0
    inside: int = 0
    windows: WindowPosition | None = None
    lane: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    def rounded_up(self, multiple: int) -> StreamPosition:
        """Returns the place behind the whole batch of all processes that this process's row is part of."""
        rest = -self.rows % multiple
        return replace(self, rows=self.rows + rest, inside=self.inside + rest)

    def state_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> StreamPosition:
        """Returns the place that `state_dict` wrote."""
        windows = state["windows"]
        if windows is not None:
            windows = WindowPosition(
                windows["position"],
                tuple(windows["done"]),
                tuple(
                    SourcePosition(reader["passes"], reader["number"], reader["mark"])
                    for reader in windows["readers"]
                ),
                windows.get("number", 0),  # older checkpoints have one lane, where it says nothing
                windows.get("rounds", 0),
            )
        lane, left_out = state.get("lane", 0), state.get("left_out", {})
        return cls(state["rows"], state["inside"], windows, lane, dict(left_out))


@dataclass(frozen=True)
class LanePositions:
    """The places of all lanes between two batches: what a checkpoint holds of a stream.

    Attributes:
        lanes: one place each.
        turn: the lane that gives the next batch.
    """

    lanes: tuple[StreamPosition, ...]
    turn: int = 0

    @classmethod
    def at_start(cls, count: int) -> LanePositions:
        """Returns the beginning of a stream of `count` lanes."""
        return cls(tuple(StreamPosition(lane=lane) for lane in range(count)))

    @property
    def rows(self) -> int:
        """Rows given by all lanes."""
        return sum(place.rows for place in self.lanes)

    def notes(self) -> list[str]:
        """Returns what was left out of the stream so far, one line a reason."""
        counts = Counter[str]()
        for place in self.lanes:
            counts.update(place.left_out)
        return [f"left out {count:,} rows of the stream: {reason}" for reason, count in counts.items()]

    def after(self, places: Iterable[StreamPosition]) -> LanePositions:
        """Returns the places behind further batches, one place a batch, in their order."""
        lanes, turn = list(self.lanes), self.turn
        for place in places:
            lanes[place.lane] = place
            turn = (place.lane + 1) % len(lanes)
        return LanePositions(tuple(lanes), turn)

    def in_lanes(self, count: int) -> LanePositions:
        """Returns where another number of lanes goes on: all at the window of the lane that is furthest
        behind, so that no row is left out; those that other lanes gave from there on come again.
        """
        if count == len(self.lanes):
            return self
        behind = min(self.lanes, key=lambda place: place.windows.number if place.windows else -1)
        lanes = [StreamPosition(windows=behind.windows, lane=lane) for lane in range(count)]
        left_out = Counter[str]()
        for place in self.lanes:
            left_out.update(place.left_out)
        lanes[0] = replace(lanes[0], rows=self.rows, left_out=dict(left_out))
        return LanePositions(tuple(lanes))

    def state_dict(self) -> dict[str, Any]:
        """Returns them as JSON data."""
        return {"turn": self.turn, "lanes": [place.state_dict() for place in self.lanes]}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> LanePositions:
        """Returns the places that `state_dict` wrote; an older checkpoint has those of one lane alone."""
        if "lanes" not in state:
            return cls((StreamPosition.from_state_dict(state),))
        return cls(tuple(map(StreamPosition.from_state_dict, state["lanes"])), state["turn"])
