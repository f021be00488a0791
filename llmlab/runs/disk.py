"""A full disk costs time, not work: what cannot be written waits until there is room."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from llmlab.errors import LabError

T = TypeVar("T")
LITTLE = 4_000_000  # bytes; a failed write with less than this left failed for want of room
LOOK_EVERY = 1.0  # seconds


def patiently(
    work: Callable[[], T],
    folder: Path,
    needed: int,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> T:
    """Returns what `work` returns; while the disk has no room for it, waits and tries again from its
    beginning.

    Args:
        work: writes into `folder`, and can be done again after a failure.
        folder: on the disk in question.
        needed: bytes that must be free before it is tried.
        say: shows a line to the person, once per wait.
        stopped: whether an end was asked for meanwhile.

    Raises:
        LabError: when an end was asked for while the disk was full.
    """
    told = False
    while True:
        free = shutil.disk_usage(folder).free
        if free >= needed:
            try:
                return work()
            except Exception as error:  # the libraries that write raise kinds of their own
                if not is_full(error, folder):
                    raise
        if not told:
            say(
                f"the disk is full: {folder} has {free / 1e6:,.1f} MB free and about"
                f" {max(needed, 1) / 1e6:,.1f} MB are to be written. The run waits; free some space, or stop"
                " it with Ctrl+C and lose nothing that is sealed"
            )
            told = True
        if stopped():
            raise LabError(
                "stopped while the disk was full; earlier checkpoints are whole",
                where=str(folder),
                exit_code=1,
                remedy=f"free space; `llmlab run {folder}` goes on from the last sealed checkpoint",
            )
        time.sleep(LOOK_EVERY)


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
