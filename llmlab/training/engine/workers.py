"""The processes of a job that answer together: each has the whole model, the first one writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from llmlab.errors import LabError
from llmlab.runs.disk import FullDisk
from llmlab.training.callbacks.stop import StopOnSignal, Stopped
from llmlab.training.engine.distributed import broadcast_from_main, is_main, processes

T = TypeVar("T")


@dataclass(frozen=True)
class JobWorkers:
    """The processes of this job.

    Attributes:
        process: number of this one, from 0.
        processes: how many there are.
        stop: is told of signals; where one process got one, all stop behind the same batch.
        disk: waits for room on a full one.
        folder: that is written into.
    """

    process: int
    processes: int
    stop: StopOnSignal
    disk: FullDisk
    folder: Path

    @classmethod
    def of_this_job(cls, stop: StopOnSignal, disk: FullDisk, folder: Path) -> JobWorkers:
        """Returns the processes that were started together."""
        count = processes()
        own = 0 if is_main() or count == 1 else torch.distributed.get_rank()
        return cls(own, count, stop, disk, folder)

    def from_first(self, decide: Callable[[], T]) -> T:
        """Returns in every process what the first one decides, or writes where there is room.

        Raises:
            LabError: in every process, when deciding does.
        """
        return broadcast_from_main(lambda: self.disk.retry(decide, self.folder))

    def together(self, compute: Callable[[], list[T]]) -> list[T]:
        """Returns what all processes compute, in their order.

        Raises:
            LabError: in every process, where one fails.
            Stopped: in every process, where one was asked to end.
        """
        if self.processes == 1:
            return compute()
        from accelerate.utils import gather_object

        own: dict[str, Any] = {"lines": [], "error": None, "signal": self.stop.received}
        try:
            own["lines"] = compute()
        except LabError as error:
            own["error"] = (error.what, error.where, error.remedy, error.exit_code)
        except Exception as error:  # the others wait: they have to hear of it
            what = f"process {self.process} failed in an evaluation ({type(error).__name__}: {error})"
            own["error"] = (what, "", "", 1)
        gathered: list[dict[str, Any]] = gather_object([own])
        for one in gathered:
            if one["error"]:
                what, where, remedy, exit_code = one["error"]
                raise LabError(what, where=where, remedy=remedy, exit_code=exit_code)
        if signal := max(one["signal"] for one in gathered):
            self.stop.received = signal
            raise Stopped
        return [line for one in gathered for line in one["lines"]]
