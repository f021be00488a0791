"""The file of answers: written batch by batch, whole rows only, and taken up again where it stopped.

Beside it stands a small file that says with what the answers were made (`answers.jsonl.settings.json`): the
same command goes on, another model or another setting is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llmlab.chat.prompts_file import PromptRow, PromptsFile, json_object
from llmlab.errors import LabError
from llmlab.files import read_object, write_text_atomically

ERROR, FINISH = "error", "finish_reason"  # columns of the output, beside the answer


@dataclass(frozen=True)
class AnswersFile:
    """Where answers are written.

    Attributes:
        path: of the file.
        column: of the answer.
    """

    path: Path
    column: str

    @property
    def added(self) -> tuple[str, ...]:
        """The columns that it adds to those of the input."""
        return (self.column, FINISH, ERROR)

    @property
    def settings_path(self) -> Path:
        """The file that says how the answers were made."""
        return self.path.with_name(f"{self.path.name}.settings.json")

    def settings(self) -> dict[str, Any]:
        """Returns how the answers that are there were made; empty where there are none.

        Raises:
            LabError: when the file is from something else.
        """
        try:
            about = self.path.stat()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise LabError(f"cannot be read ({error.strerror})", where=str(self.path)) from None
        if not stat.S_ISREG(about.st_mode):
            raise LabError("is no regular file", where=str(self.path), remedy="choose another output")
        if not about.st_size:
            return {}
        try:
            return read_object(self.settings_path)
        except (OSError, ValueError):
            raise LabError(
                f"already exists, and no {self.settings_path.name} says how it was made",
                where=str(self.path),
                remedy="choose another output, or remove it",
            ) from None

    def refuse_others(self, wanted: dict[str, Any]) -> None:
        """Refuses to add to answers of another model or other settings.

        Raises:
            LabError: with what differs.
        """
        before = self.settings()
        differing = [name for name in wanted if before and before.get(name) != wanted[name]]
        if not differing:
            return
        name = differing[0]
        was, now = before.get(name), wanted[name]
        if isinstance(was, dict) and isinstance(now, dict):
            part = next(key for key in {**was, **now} if was.get(key) != now.get(key))
            name, was, now = f"{name}.{part}", was.get(part), now.get(part)
        raise LabError(
            f"was made with other settings: `{name}` was {json.dumps(was)} and is {json.dumps(now)}",
            where=str(self.path),
            remedy="choose another output, or remove it",
        )

    def note(self, settings: dict[str, Any]) -> None:
        """Writes how the answers are made."""
        write_text_atomically(self.settings_path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")

    def answered(self, prompts: PromptsFile) -> int:
        """Returns how many rows are answered, after comparing each with its row of the input; a row that was
        cut off by a kill is removed.

        Raises:
            LabError: when they are not answers to these prompts.
        """
        if not self.path.exists():
            return 0
        count, end = 0, 0
        rows = iter(prompts)
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                asked = next(rows, None)
                if asked is None or not self._answers(line, asked, f"{self.path}: line {count + 1}"):
                    raise LabError(
                        f"line {count + 1} is no answer to that row of {prompts.path}",
                        where=str(self.path),
                        remedy="give it the prompts it was made from, or choose another output",
                    )
                count, end = count + 1, end + len(line)
        if end < self.path.stat().st_size:
            os.truncate(self.path, end)
        return count

    def _answers(self, line: bytes, asked: PromptRow, where: str) -> bool:
        row = json_object(line, where)
        own = {name: value for name, value in row.items() if name not in self.added}
        return self.column in row and json.dumps(own) == json.dumps(asked.columns)

    def row(self, asked: PromptRow, **added: Any) -> bytes:
        """Returns a line of the file."""
        return (json.dumps({**asked.columns, **added}, ensure_ascii=False) + "\n").encode()

    def append(self, lines: Sequence[bytes]) -> None:
        """Adds rows, all of them or none.

        Raises:
            LabError: when the disk does not take them.
        """
        try:
            with open(self.path, "ab") as file:
                size = file.tell()
                try:
                    file.write(b"".join(lines))
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        os.truncate(self.path, size)
                    raise
        except OSError as error:
            raise LabError(
                f"cannot be written ({error.strerror}); the rows before are complete",
                where=str(self.path),
                remedy="free space; the same command goes on",
                exit_code=1,
            ) from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing to the file.

        Raises:
            LabError: when another one does, or its folder cannot be written.
        """
        path = self.path.with_name(f".{self.path.name}.lock")
        lock = FileLock(path, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise LabError(
                "another process is writing it", where=str(self.path), remedy="wait for it, or stop it"
            ) from None
        except OSError as error:
            raise LabError(
                f"cannot be written ({error.strerror})", where=str(self.path), remedy="choose another output"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.release()
