"""A file of JSON lines that grows: a row is on the disk before anything goes on,
and what a kill cut off at its end is left out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.errors import LabError
from llmlab.files import BadFile, read_bytes, write_text_atomically

LARGEST = 1 << 30  # bytes
PATIENCE = 10.0  # seconds that a writer waits for another


@dataclass(frozen=True)
class Journal:
    """Rows in a file.

    Attributes:
        path: of the file; it need not exist.
    """

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows; none where there is no file. A last line that was cut off is left out.

        Raises:
            LabError: naming the line that is no JSON object, or when the file cannot be read.
        """
        try:
            content = read_bytes(self.path, LARGEST)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LabError(f"cannot be read ({error.strerror})", where=str(self.path)) from None
        except BadFile as error:
            raise LabError(str(error), where=str(self.path)) from None
        lines = content.split(b"\n")
        rows = []
        for number, line in enumerate(lines, 1):
            row = _object(line)
            if row is not None:
                rows.append(row)
            elif line.strip() and number < len(lines):
                raise LabError("is no JSON object", where=f"{self.path}: line {number}")
        return rows

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row, which is on the disk when this returns.

        Raises:
            LabError: when the disk does not take it; the rows before are as they were.
        """
        line = _line(row)
        try:
            is_new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:
                size = _end_of_rows(file.tell(), self.path)
                try:
                    file.truncate(size)
                    content = line if _ends_a_line(self.path, size) else b"\n" + line
                    if file.write(content) != len(content):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(size)
                    raise
            if is_new:
                _sync_folder(self.path.parent)
        except OSError as error:
            raise LabError(
                f"cannot be written ({error.strerror}); the rows before are complete",
                where=str(self.path),
                remedy="free space or choose another place",
            ) from None

    def replace(self, rows: list[dict[str, Any]]) -> None:
        """Writes the file anew, whole or not at all.

        Raises:
            LabError: when that fails.
        """
        write_text_atomically(self.path, b"".join(map(_line, rows)).decode())

    @contextlib.contextmanager
    def lock(self, wait: float = PATIENCE) -> Iterator[None]:
        """Keeps other processes from writing to the file.

        Raises:
            LabError: when another one still does after `wait` seconds, or its folder cannot be written.
        """
        from filelock import FileLock, Timeout

        place = self.path.with_name(f".{self.path.name}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(place, timeout=wait)
            lock.acquire()
        except Timeout:
            raise LabError(
                "another process is writing it", where=str(self.path), remedy="wait for it, or stop it"
            ) from None
        except OSError as error:
            raise LabError(
                f"cannot be written ({error.strerror})", where=str(self.path), remedy="choose another place"
            ) from None
        try:
            yield
        finally:
            lock.release()


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _end_of_rows(size: int, path: Path) -> int:
    """Returns where the next row begins: behind the last line that is whole."""
    if _ends_a_line(path, size):
        return size
    content = path.read_bytes()
    whole, _, last = content.rpartition(b"\n")
    if _object(last) is not None:  # written by hand, without its end
        return size
    return len(whole) + 1 if b"\n" in content else 0


def _ends_a_line(path: Path, size: int) -> bool:
    if not size:
        return True
    with open(path, "rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"


def _sync_folder(folder: Path) -> None:
    """Writes a new name of a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
