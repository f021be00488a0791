"""TensorBoard's event files, written where the run writes everything else: at once, whole events, waiting for
room.

The libraries' writer hands events to a thread, which dies on a full disk: a traceback, and figures that are
lost.
"""

from __future__ import annotations

import io
import math
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.runs.disk import FullDisk


class TensorBoard(TrainerCallback):
    """Appends every logged figure to an event file below `tensorboard/`, under the names that transformers
    gives them.

    Args:
        run: folder of the run.
        disk: waits for room on a full one.
    """

    def __init__(self, run: Path, disk: FullDisk):
        self.run, self.disk = run, disk
        self.file = (
            run
            / "tensorboard"
            / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.0"
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        """Writes the figures of one step."""
        if not state.is_world_process_zero:
            return
        figures = {
            name: value
            for name, value in (logs or {}).items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        values = [
            Summary.Value(tag=tag_of(name), simple_value=float(value)) for name, value in figures.items()
        ]
        now = time.time()
        event = Event(wall_time=now, step=state.global_step, summary=Summary(value=values))
        self.disk.retry(lambda: self._append(event, now), self.run)

    def _append(self, event: Event, now: float) -> None:
        self.file.parent.mkdir(exist_ok=True)
        before = self.file.stat().st_size if self.file.exists() else 0
        content = io.BytesIO()
        records = RecordWriter(content)
        if not before:
            records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        records.write(event.SerializeToString())
        try:
            with open(self.file, "ab") as file:
                file.write(content.getvalue())
        except OSError:
            if self.file.exists():
                os.truncate(self.file, before)  # an event that is cut off would end the file for its readers
            raise


def tag_of(name: str) -> str:
    """Returns the tag of a logged figure, as transformers names it: `eval/...` for held-out figures,
    else `train/...`.
    """
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
