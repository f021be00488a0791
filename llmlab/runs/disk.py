"""A full disk costs time, not work: what cannot be written waits until there is room."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llmlab.errors import LabError

T = TypeVar("T")
LITTLE = 4_000_000  # bytes; a failed write with less than this left failed for want of room
LOOK_EVERY = 1.0  # seconds
DONE, FULL, FAILED = range(3)  # how a write ended, the worst last


@dataclass(frozen=True)
class FullDisk:
    """What is done about a full disk: a write that finds no room waits for it and is tried again.

    Attributes:
        tell: shows a line to the user, once per wait.
        stop_asked: whether an end was asked for meanwhile.
    """

    tell: Callable[[str], None]
    stop_asked: Callable[[], bool] = lambda: False

    def retry(
        self,
        write: Callable[[], T],
        folder: Path,
        needed: int = 0,
        *,
        worst: Callable[[int], int] = lambda own: own,
    ) -> T:
        """Returns what `write` returns; while the disk has no room, waits and begins it again.

        Args:
            write: writes into `folder`, and can be done again after a failure.
            folder: on the disk in question.
            needed: bytes that must be free before it is tried.
            worst: the largest of the numbers that all processes give, where several write together: each
                has to call this then, and they begin again together.

        Raises:
            LabError: when an end was asked for while the disk was full, or when another process failed.
        """
        warned = False
        while True:
            free = shutil.disk_usage(folder).free
            if worst(int(free < needed)) == 0:
                error = None
                try:
                    written = write()
                except Exception as failed:  # the libraries that write raise kinds of their own
                    error = failed
                state = DONE if error is None else FULL if is_full(error, folder) else FAILED
                match worst(state):
                    case 0:  # of all, this one included
                        return written
                    case 2:
                        raise error if error and state == FAILED else elsewhere(folder)
            if not warned:
                self.tell(
                    f"the disk is full: {folder} has {free / 1e6:,.1f} MB free and about"
                    f" {max(needed, 1) / 1e6:,.1f} MB are to be written. The run waits; free some space, or"
                    " stop it with Ctrl+C: checkpoints that are complete stay"
                )
                warned = True
            if worst(int(self.stop_asked())):
                raise LabError(
                    "stopped while the disk was full; earlier checkpoints are complete",
                    where=str(folder),
                    exit_code=1,
                    remedy=f"free space; to resume from the last checkpoint: `llmlab run {folder}`",
                )
            time.sleep(LOOK_EVERY)


def elsewhere(folder: Path) -> LabError:
    """Returns the error of a process whose writing was in vain, since another one failed."""
    return LabError(
        "another process of the job could not write",
        where=str(folder),
        exit_code=1,
        remedy=f"to resume from the last checkpoint: `llmlab run {folder}`",
    )


def is_full(error: BaseException, folder: Path) -> bool:
    """Returns whether a write failed for want of room."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "No space left" in str(error) or "Disk quota" in str(error):
        return True
    wrote = any(
        part in str(error) for part in ("PytorchStreamWriter", "unexpected pos", "write failed", "I/O error")
    )
    return wrote and shutil.disk_usage(folder).free < LITTLE
