"""The lock on a run's folder: one process trains, renames or deletes it at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmlab.errors import LabError
from llmlab.files import read_object

LOCK, HOLDER = ".lock", ".holder.json"


@contextmanager
def run_lock(path: Path, *, doing: str = "training", option: str = "output_dir") -> Iterator[None]:
    """Locks a run's folder; the system frees the lock when its process dies.

    Args:
        path: of the folder.
        doing: what its process does, in a word.
        option: that says where the folder is.

    Raises:
        LabError: when another process is in it.
    """
    from filelock import FileLock, Timeout  # a third of what the list of runs would import

    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK, blocking=False)
        lock.acquire()
    except Timeout:
        raise LabError(
            f"{_holder(path)} is {doing} in this folder",
            where=str(path),
            remedy=f"wait for it, stop it, or choose another `{option}`",
        ) from None
    except OSError as error:
        raise LabError(
            f"cannot be created ({error.strerror})", where=str(path), remedy=f"choose another `{option}`"
        ) from None
    try:
        with suppress(OSError):  # a full disk: the lock holds without a name
            (path / HOLDER).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        (path / HOLDER).unlink(missing_ok=True)
        lock.release()
        if is_new and path.is_dir() and [file.name for file in path.iterdir()] == [LOCK]:
            (path / LOCK).unlink()
            path.rmdir()


def is_training(path: Path) -> bool:
    """Returns whether a process holds the lock of a run."""
    from filelock import FileLock, Timeout

    if not (path / LOCK).exists():
        return False
    lock = FileLock(path / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:  # a folder that others own
        return False
    lock.release()
    return False


def was_killed(path: Path) -> bool:
    """Returns whether the process of a run ended without noting how: nobody holds the lock that was taken.

    False where that cannot be known: the lock was never taken, or was taken on another machine.
    """
    try:
        host = read_object(path / HOLDER).get("host")
    except (OSError, ValueError):
        host = None
    here = host in (None, socket.gethostname())
    return here and (path / LOCK).exists() and os.access(path / LOCK, os.W_OK) and not is_training(path)


def _holder(path: Path) -> str:
    try:
        who = read_object(path / HOLDER)
        return f"process {who['pid']} on {who['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
