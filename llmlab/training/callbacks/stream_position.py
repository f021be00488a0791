"""The place in a stream that a checkpoint comes after."""

from __future__ import annotations

import json
from pathlib import Path

from llmlab.data.stream import PackedStream
from llmlab.runs.checkpoint import Checkpoint
from llmlab.runs.folder import read_json


class StreamPosition:
    """Keeps the place in a stream with every checkpoint; stored rows need none,
    their order follows from seed and step.
    """

    FILE = "data_position.json"

    def __init__(self, rows: object, rows_per_step: int):
        self.stream = rows if isinstance(rows, PackedStream) else None
        self.rows_per_step = rows_per_step

    def restore(self, checkpoint: Checkpoint | None, workers: int) -> bool:
        """Sets the stream to the place of a checkpoint; returns whether it did, else the rows have to be read
        again.

        With loader processes the stream lives in them, where its place cannot be taken: then it is read
        again.
        """
        if self.stream is None or workers:
            return False
        self.stream.snapshot_every = self.rows_per_step
        place = read_json(checkpoint.path / self.FILE) if checkpoint else {}
        if place.get("rows_per_step") != self.rows_per_step:  # another batch size or number of processes
            return False
        self.stream.start = place["stream"]
        return True

    def write(self, folder: Path, step: int) -> None:
        """Writes into a checkpoint the place of the first row that is not trained on yet
        (the loader has read further).
        """
        if self.stream is None:
            return
        trained = step * self.rows_per_step
        known = [place for place in self.stream.snapshots if place["rows"] <= trained]
        if not known:
            return
        place = known[-1]
        place = {**place, "rows": trained, "inside": place["inside"] + trained - place["rows"]}
        (folder / self.FILE).write_text(json.dumps({"rows_per_step": self.rows_per_step, "stream": place}))
