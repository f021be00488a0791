"""Files that are written whole or not at all, and read within bounds: whatever a name stands for,
reading it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from llmlab.errors import LabError
from llmlab.readable import nested_deeper

LARGEST = 10_000_000  # bytes of a file that is read as a whole
DEEPEST = 100  # lists and objects inside one another


class BadFile(ValueError):
    """A file that cannot be what it is read as; the message says why."""


def cache_root() -> Path:
    """Returns the folder of what can be made again: `LLMLAB_CACHE`, else `llmlab` in the user's cache
    folder.
    """
    base = (
        os.environ.get("LLMLAB_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmlab"
    )
    return Path(base)


def settings_folder() -> Path:
    """Returns the folder of what a person has told once: `LLMLAB_CONFIG`, else `llmlab` in the user's folder
    of settings.
    """
    base = os.environ.get("LLMLAB_CONFIG")
    return Path(base or Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "llmlab")


def state_root() -> Path:
    """Returns the folder of what a person did before and may want again: `LLMLAB_STATE`, else `llmlab` in the
    user's state folder.
    """
    base = os.environ.get("LLMLAB_STATE")
    return Path(base or Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "llmlab")


def in_home(name: str) -> Path:
    """Returns the path of a name; `~` is the home folder,
    what looks like a person that there is not a name as any other.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """Returns the content of a regular file.

    Raises:
        OSError: when it is not there or cannot be read.
        BadFile: when it is a folder, a pipe or a device, longer than `largest` bytes, or no name that a file
            can have.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError:  # a NUL, or half of a surrogate pair
        raise BadFile("is no name that a file can have") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise BadFile(
                "is a folder, not a file" if stat.S_ISDIR(mode) else "is a pipe or a device, not a file"
            )
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(largest + 1)
    finally:
        os.close(descriptor)
    if len(content) > largest:
        raise BadFile(f"has more than {largest:,} bytes")
    return content


def read_json(path: Path, *, largest: int = LARGEST, deepest: int = DEEPEST) -> Any:
    """Returns the data in a JSON file.

    Raises:
        OSError: when it is not there or cannot be read.
        BadFile: when it is no regular file, too long, no UTF-8 text, no JSON, or nested too deeply.
    """
    content = read_bytes(path, largest)
    try:
        data = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadFile(f"is not UTF-8 text ({error.reason} at byte {error.start + 1:,})") from None
    except json.JSONDecodeError as error:
        raise BadFile(
            f"is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno})"
        ) from None
    except ValueError:  # Python reads no more than 4,300 digits
        raise BadFile("holds a number of too many digits") from None
    except RecursionError:
        raise BadFile(f"is nested more than {deepest} deep") from None
    if nested_deeper(data, deepest):
        raise BadFile(f"is nested more than {deepest} deep")
    return data


def read_object(path: Path, *, largest: int = LARGEST) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        OSError: when it is not there or cannot be read.
        BadFile: when it cannot be read as JSON, or holds something else.
    """
    data = read_json(path, largest=largest)
    if not isinstance(data, dict):
        raise BadFile("holds no JSON object")
    return data


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a text file under a temporary name and renames it.

    Raises:
        LabError: when that fails; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
        ) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: a NUL in the name, half of a surrogate pair in the text
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        reason = getattr(error, "strerror", None) or error
        raise LabError(
            f"cannot be written ({reason})", where=str(path), remedy="free space or choose another place"
        ) from None


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[str]]:
    """Gives a text file to write, which gets its name when all of it is on the disk; nothing is left behind
    else. Where the process is killed a hidden file ending in `.part` stays, which the next writer takes.

    Raises:
        LabError: when that fails, or another process writes the same file.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "a", encoding="utf-8") as file:
            _lock(file)
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
    except BlockingIOError:
        raise LabError("is being written by another process", where=str(path)) from None
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if not isinstance(error, (OSError, UnicodeEncodeError)):
            raise
        reason = getattr(error, "strerror", None) or error
        raise LabError(
            f"cannot be written ({reason})", where=str(path), remedy="free space or choose another place"
        ) from None


def _lock(file: IO[str]) -> None:
    """Takes a file for this process.

    Raises:
        BlockingIOError: when another one has it.
    """
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
