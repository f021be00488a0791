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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.record_writer import RecordWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.runs.disk import FullDisk


class TensorBoard(TrainerCallback):
    """Appends every logged figure to an event file below `tensorboard/`, under the names that transformers
    gives them.

    Args:
        run: folder of the run.
        disk: waits for room on a full one.
        facts: of the run, which it begins with: numbers as scalars `run/...`, all of them as a text.
    """

    def __init__(self, run: Path, disk: FullDisk, facts: Mapping[str, float | str] | None = None):
        self.run, self.disk, self.facts = run, disk, facts or {}
        self.file = (
            run
            / "tensorboard"
            / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.0"
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Writes what the run is."""
        if state.is_world_process_zero and self.facts:
            self._write([*_scalars(self.facts), _table(self.facts)], state.global_step)

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
        self._write(values, state.global_step)

    def _write(self, values: list[Any], step: int) -> None:
        now = time.time()
        event = Event(wall_time=now, step=step, summary=Summary(value=values))
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


def _scalars(facts: Mapping[str, float | str]) -> list[Any]:
    return [
        Summary.Value(tag=f"run/{name}", simple_value=float(value))
        for name, value in facts.items()
        if not isinstance(value, str)
    ]


def _table(facts: Mapping[str, float | str]) -> Any:
    """Returns the facts as a text of TensorBoard, which shows Markdown: names and values as code."""
    rows = (f"| {name} | `{_cell(value)}` |" for name, value in facts.items())
    text = "\n".join(["| run | |", "| --- | --- |", *rows])
    tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
    shown_by = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag="run/text_summary", metadata=shown_by, tensor=tensor)


def _cell(value: float | str) -> str:
    text = value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return " ".join(text.replace("`", "'").replace("|", "/").split())


def tag_of(name: str) -> str:
    """Returns the tag of a logged figure, as transformers names it: `eval/...` for held-out figures,
    else `train/...`.
    """
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
