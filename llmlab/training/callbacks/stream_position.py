"""The place in a stream that a checkpoint comes after."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmlab.data.packing import POSITION
from llmlab.data.stream import PackedStream
from llmlab.data.stream_position import LanePositions
from llmlab.runs.checkpoint import Checkpoint
from llmlab.runs.folder import read_json


class StreamProgress:
    """Follows a stream batch by batch, and keeps its place with every checkpoint; stored rows need none:
    their order follows from seed and step.

    Args:
        rows: to train on.
        rows_per_batch: that all processes together take at once.
        batches_per_step: micro-batches of an update.
        workers: loader processes; each has a lane of the stream.
    """

    FILE = "data_position.json"

    def __init__(self, rows: object, *, rows_per_batch: int, batches_per_step: int, workers: int):
        self.stream = rows if isinstance(rows, PackedStream) else None
        self.rows_per_batch, self.rows_per_step = rows_per_batch, rows_per_batch * batches_per_step
        self.lanes = max(1, workers)
        self._now = self._before = LanePositions.at_start(self.lanes)

    def restore(self, checkpoint: Checkpoint | None) -> bool:
        """Sets the stream to the place of a checkpoint; returns whether it did, else the rows have to be read
        again.
        """
        if self.stream is None:
            return False
        place = read_json(checkpoint.path / self.FILE) if checkpoint else {}
        if place.get("rows_per_step") != self.rows_per_step:  # another batch size or number of processes
            return False
        self._now = self._before = LanePositions.from_state_dict(place["stream"]).in_lanes(self.lanes)
        self.stream.load_state_dict(self._now.state_dict())
        return True

    def follow(self, batches: Iterable[dict[str, Any]]) -> None:
        """Takes the places off the batches of an update that is about to be made."""
        if self.stream is None:
            return
        places = [batch.pop(POSITION).rounded_up(self.rows_per_batch) for batch in batches]
        self._before, self._now = self._now, self._now.after(places)

    def notes(self) -> list[str]:
        """Returns what was left out of the stream since the run began, one line a reason."""
        return self._now.notes()

    def write(self, folder: Path, step: int) -> None:
        """Writes into a checkpoint the place of the first row that is not trained on yet: the batches of an
        update that was broken off do not count.
        """
        if self.stream is None:
            return
        for place in (self._now, self._before):
            if place.rows == step * self.rows_per_step:
                state = {"rows_per_step": self.rows_per_step, "stream": place.state_dict()}
                (folder / self.FILE).write_text(json.dumps(state))
                return
