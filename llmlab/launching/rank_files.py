"""What the processes of a job leave for the program that started them: their place, why they ended, stacks.

torchrun gives every process a folder of its own through `TORCHELASTIC_ERROR_FILE`; these files are written
there. Without torchrun there is no folder, and nothing is written.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STATE, STACKS, EXIT, WRITING = "state.json", "stacks.txt", "exit.json", "writing.json"
ROOM = 4096  # bytes of the state, padded so that one write replaces it


class RankFiles:
    """The files of one process.

    Args:
        folder: where they lie; None writes nothing.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._state = read(folder / STATE) if folder else {}

    @classmethod
    def of_this_process(cls) -> RankFiles:
        """Returns the files of the process that asks."""
        named = os.environ.get("TORCHELASTIC_ERROR_FILE")
        return cls(Path(named).parent if named else None)

    def dump_stacks_when_asked(self) -> None:
        """Lets SIGUSR1 write the stacks of all threads, even where Python does nothing any more."""
        if self.folder is not None and (usr1 := getattr(signal, "SIGUSR1", None)):
            self._note(pid=os.getpid())
            faulthandler.register(usr1, file=(self.folder / STACKS).open("w"), all_threads=True)

    def note_run(self, folder: Path) -> None:
        """Notes the folder of the run."""
        self._note(run=str(folder))

    def note_step(self, step: int) -> None:
        """Notes the last update that was done."""
        self._note(step=step)

    def note_exit(self, code: int, message: str = "", *, because: str = "") -> None:
        """Notes how the process ends.

        Args:
            code: its exit code.
            message: what is to be said; "" for nothing.
            because: "lost" or "late" where it ends because of another process, else "".
        """
        if self.folder is not None:
            with suppress(OSError):
                text = json.dumps({"code": code, "message": message, "because": because})
                (self.folder / EXIT).write_text(text)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lets the launcher wait for what happens within, also where another process has failed."""
        if self.folder is not None:
            with suppress(OSError):
                (self.folder / WRITING).write_text(json.dumps({"pid": os.getpid()}))
        try:
            yield
        finally:
            if self.folder is not None:
                (self.folder / WRITING).unlink(missing_ok=True)

    def ask_others_for_stacks(self) -> None:
        """Lets the other processes of this machine write down what they are doing."""
        if self.folder is None:
            return
        for other in self.folder.parent.iterdir():
            pid = read(other / STATE).get("pid")
            if other != self.folder and isinstance(pid, int):
                with suppress(OSError):
                    os.kill(pid, signal.SIGUSR1)
        time.sleep(1)  # the writing

    def _note(self, **values: object) -> None:
        self._state |= values
        if self.folder is None:
            return
        with suppress(OSError):
            place = os.open(self.folder / STATE, os.O_WRONLY | os.O_CREAT)
            try:
                os.pwrite(place, json.dumps(self._state).encode().ljust(ROOM), 0)
            finally:
                os.close(place)


def writing_processes(logs: Path) -> set[int]:
    """Returns the processes of a job that are within `RankFiles.writing`.

    Args:
        logs: torchrun's folder, in which the processes have theirs.
    """
    return {read(file).get("pid", 0) for file in logs.glob(f"*/attempt_*/*/{WRITING}")}


def read(file: Path) -> dict[str, Any]:
    """Returns what a process left in a file; empty where it left nothing."""
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text())
        return found if isinstance(found, dict) else {}
    return {}
