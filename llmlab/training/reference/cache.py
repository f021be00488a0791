"""What a frozen reference says of fixed answers, on disk: computed once, found by content, never by place.

An item is a prompt and its answers (two for a preference pair, one for an answer with a verdict) as token
ids; its key is a hash of exactly these ids, so that any order, batch size, subset or number of processes
finds its own values. A cache belongs to one description of everything else that the values depend on
(weights, adapter, precision, quantisation, tokenizer, template, truncation, what is stored); another
description is another folder.

    <folder>/KEY.json                the description
    <folder>/part-<sha256>.parquet   items: key (16 bytes), one number an answer (or one a token)
    <folder>/parts-<writer>.jsonl    one line for every part that was written: its name and rows
    <folder>/.in-use-<writer>        locked by a run while it reads and fills the cache: `delete` leaves the
    folder alone then

A part is written aside, synced and renamed to the hash of its content; then its line is appended. A part that
does not have its own hash, or is gone, is named and not read: its items are computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from llmlab.errors import LabError
from llmlab.files import read_object, write_text_atomically

KEY_FILE = "KEY.json"
KEY_BYTES = 16
IN_USE = ".in-use-"
GUARD = ".cache.lock"  # lock file in `cache_dir`, held while a cache is opened and while one is deleted
SUMS, TOKENS = "sums", "tokens"
Item = Sequence[Sequence[int]]  # a prompt, then its answers


def item_key(item: Item) -> bytes:
    """Returns the 16 bytes under which an item's values are stored:
    a hash of the token ids of prompt and answers.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for ids in item:
        array = np.asarray(ids, dtype="<i4")
        digest.update(len(array).to_bytes(4, "little"))
        digest.update(array.tobytes())
    return digest.digest()


def description_hash(description: dict[str, Any]) -> str:
    """Returns the name of the folder of a description."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass
class ReferenceCache:
    """The values of one reference. One that was opened is in use until it is closed, or its process ends.

    Attributes:
        folder: of this description.
        description: everything the values depend on beside the ids.
        faults: parts that were not read, and why.
    """

    folder: Path
    description: dict[str, Any]
    faults: list[str] = field(default_factory=list)
    _values: dict[bytes, Any] = field(default_factory=dict)
    _writer: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    _read: set[str] = field(default_factory=set)
    _lock: FileLock | None = None

    @classmethod
    def open(cls, root: Path, description: dict[str, Any]) -> ReferenceCache:
        """Returns the cache of a description below `root`, with every whole part of it read.

        Raises:
            LabError: when the folder cannot be made or read.
        """
        cache = cls(root / description_hash(description), description)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _guarded(root):
                cache.folder.mkdir(exist_ok=True)
                cache._take_into_use()
                if not (cache.folder / KEY_FILE).exists():
                    write_text_atomically(
                        cache.folder / KEY_FILE, json.dumps(description, indent=1, sort_keys=True) + "\n"
                    )
            cache.read()
        except OSError as error:
            cache.close()
            raise LabError(
                f"the reference cache cannot be used ({error.strerror or error})",
                where=str(cache.folder),
                remedy="choose another `cache_dir`",
            ) from None
        return cache

    def _take_into_use(self) -> None:
        _users(self.folder)  # what killed runs left goes
        lock = FileLock(
            self.folder / f"{IN_USE}{os.getpid()}@{socket.gethostname()}-{self._writer}", thread_local=False
        )
        with suppress(OSError):  # a folder that cannot be written can be read; `delete` fails in it
            lock.acquire()
            self._lock = lock

    def close(self) -> None:
        """Ends the use of the folder: it may be deleted now. What was read stays in memory."""
        if self._lock:
            with suppress(OSError):
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def __enter__(self) -> ReferenceCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def delete(self) -> list[str]:
        """Deletes the folder, unless a run is using it.

        Returns:
            The processes that are using it, as "process 4711 on HOST"; none when it was deleted.

        Raises:
            OSError: when it cannot be deleted.
        """
        with _guarded(self.folder.parent):
            users = _users(self.folder)
            if not users:
                shutil.rmtree(self.folder)
        return users

    def read(self) -> None:
        """Reads the parts that were written since the last look, also those of other processes."""
        listed = self._listed()
        here = {path.stem.removeprefix("part-") for path in self.folder.glob("part-*.parquet")}
        for name in sorted((listed | here) - self._read):
            self._read.add(name)
            fault = self._read_part(name) if name in here else "is gone"
            if fault:
                self.faults.append(f"part-{name[:12]} {fault}: its values are computed again")

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: bytes) -> bool:
        return key in self._values

    def missing(self, keys: Iterable[bytes]) -> list[int]:
        """Returns the numbers of the keys without a value, of equal ones only the first."""
        seen: set[bytes] = set()
        indices = []
        for number, key in enumerate(keys):
            if key not in self._values and key not in seen:
                seen.add(key)
                indices.append(number)
        return indices

    def get(self, key: bytes) -> Any:
        """Returns the values of an item: a float32 array with one log-probability an answer, or a list of
        arrays with one for every token of each answer.

        Raises:
            KeyError: when there are none.
        """
        return self._values[key]

    def append(self, keys: list[bytes], values: list[Any]) -> None:
        """Seals a part with the values of new items.

        Args:
            keys: from `item_key`.
            values: for each, one number an answer, or one list of numbers an answer.

        Raises:
            OSError: when the disk is full; nothing is half-written then.
            ValueError: when a value is not a finite number.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not keys:
            return
        arrays = [_arrays(value) for value in values]
        if not all(np.isfinite(array).all() for value in arrays for array in value):
            raise ValueError("the reference gives values that are not finite numbers")
        table = pa.table({"key": pa.array(keys, pa.binary(KEY_BYTES)), **self._columns(arrays)})
        sink = io.BytesIO()
        pq.write_table(
            table, sink, compression="zstd", use_dictionary=False, write_statistics=False, store_schema=False
        )
        content = sink.getvalue()
        name = hashlib.sha256(content).hexdigest()
        aside = self.folder / f".part-{self._writer}"
        try:
            with open(aside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self.folder / f"part-{name}.parquet")
            with open(self.folder / f"parts-{self._writer}.jsonl", "a") as journal:
                journal.write(json.dumps({"part": name, "rows": len(keys)}) + "\n")
                journal.flush()
                os.fsync(journal.fileno())
        finally:
            aside.unlink(missing_ok=True)
        self._read.add(name)
        self._take(keys, arrays)

    def bytes_on_disk(self) -> int:
        """Returns the size of the folder; files that vanish meanwhile do not count."""
        total = 0
        for path in self.folder.glob("*"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
        return total

    def _listed(self) -> set[str]:
        names = set()
        for journal in self.folder.glob("parts-*.jsonl"):
            try:
                lines = journal.read_text(errors="replace").splitlines()
            except FileNotFoundError:  # the cache is being deleted
                continue
            for line in lines:
                try:
                    names.add(str(json.loads(line)["part"]))
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # a line cut off by a kill: its part is found by its name
        return names

    def _read_part(self, name: str) -> str:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            content = (self.folder / f"part-{name}.parquet").read_bytes()
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if hashlib.sha256(content).hexdigest() != name:
            return "is damaged"
        try:
            table = pq.read_table(io.BytesIO(content))
            answers = [column for column in table.column_names if column != "key"]
            columns = [table.column(column).to_pylist() for column in answers]
            keys = table.column("key").to_pylist()
        except (pa.ArrowException, KeyError, OSError) as error:
            return f"is not a part of a cache ({type(error).__name__})"
        self._take(keys, [_arrays(values) for values in zip(*columns, strict=True)])
        return ""

    def _columns(self, values: list[list[np.ndarray]]) -> dict[str, Any]:
        import pyarrow as pa

        kind = pa.float32() if self.description.get("stores", SUMS) == SUMS else pa.list_(pa.float32())
        columns = {}
        for answer in range(len(values[0])):
            column = [value[answer] for value in values]
            columns[f"answer_{answer}"] = pa.array([float(v) if v.ndim == 0 else v for v in column], kind)
        return columns

    def _take(self, keys: list[bytes], values: list[list[np.ndarray]]) -> None:
        for key, value in zip(keys, values, strict=True):
            self._values[key] = np.stack(value) if value[0].ndim == 0 else value


@contextmanager
def _guarded(root: Path) -> Iterator[None]:
    """Lets one process at a time take caches below `root` into use or delete them; all,
    where nobody can write.
    """
    guard = FileLock(root / GUARD)
    with suppress(OSError):
        guard.acquire()
    try:
        yield
    finally:
        guard.release()


def _users(folder: Path) -> list[str]:
    """Returns the processes that use a cache, in words; removes what processes left that were killed."""
    users = []
    for path in sorted(folder.glob(f"{IN_USE}*")):
        process, _, host = path.name.removeprefix(IN_USE).rpartition("-")[0].partition("@")
        try:
            with FileLock(path, blocking=False):
                path.unlink(missing_ok=True)
        except Timeout:
            users.append(f"process {process} on {host}")
        except OSError:  # another person's
            continue
    return users


def _arrays(value: Any) -> list[np.ndarray]:
    return [np.asarray(part, np.float32) for part in value]


def caches(root: Path) -> list[ReferenceCache]:
    """Returns every cache below a folder."""
    folders = []
    for path in sorted(root.glob(f"*/{KEY_FILE}")):
        try:
            description = read_object(path)
        except (OSError, ValueError):
            continue
        cache = ReferenceCache(path.parent, description)
        cache.read()
        folders.append(cache)
    return folders


def nearest_difference(root: Path, description: dict[str, Any]) -> str:
    """Returns in which parts the most similar other cache below a folder differs, "" where there is none."""
    best = ""
    fewest = len(description) + 1
    for path in root.glob(f"*/{KEY_FILE}"):
        try:
            other = read_object(path)
        except (OSError, ValueError):
            continue
        if path.parent.name == description_hash(description):
            continue
        differing = [
            name for name in sorted({*description, *other}) if description.get(name) != other.get(name)
        ]
        if 0 < len(differing) < fewest:
            fewest = len(differing)
            parts = (
                f"{name} ({_short(other.get(name))} there, {_short(description.get(name))} here)"
                for name in differing
            )
            best = f"{path.parent.name} is of another reference: {', '.join(parts)}"
    return best


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."
