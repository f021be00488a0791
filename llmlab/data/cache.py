"""Prepared data on disk: folders of Arrow files keyed by a fingerprint of everything they depend on,
complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.errors import LabError
from llmlab.files import cache_root, read_object

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

FORMAT = 7  # raised whenever prepared rows change their meaning, or the folder what is in it
FACTS = "facts.json"
SUMS = "sums.json"  # size and SHA-256 of every other file
SUMMED = 32 << 20  # bytes at either end of a file that its sum is of; of smaller files all


def cached(key: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Returns the folder stored under `key` and the facts kept with it, building both first where there are
    none.

    `build` gets an empty folder to write to and returns the facts. The folder is written aside, synced and
    renamed: a killed build leaves nothing that would be taken for data. One that was damaged since, or cut,
    is built again. Of two processes that want the same, the second waits for the first and uses what it made.

    Raises:
        LabError: when the cache folder cannot be written.
    """
    from filelock import FileLock

    text = json.dumps({**key, "format": FORMAT}, sort_keys=True, default=str)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    folder = cache_root() / "data" / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        facts = _whole(folder)
        if facts is None:
            with FileLock(folder.with_name(f".{name}.lock")):  # the system frees it when its holder dies
                facts = _whole(folder)
                if facts is None:
                    facts = _build(folder, text, build)
    except OSError as error:
        raise LabError(
            f"prepared data cannot be written ({error.strerror or error})",
            where=str(folder.parent),
            remedy="free space, or set LLMLAB_CACHE to another folder",
        ) from None
    return folder, facts


def _whole(folder: Path) -> dict[str, Any] | None:
    """Returns the facts of a folder whose files are what they were when it was built, else None."""
    try:
        sums, facts = read_object(folder / SUMS), read_object(folder / FACTS)
        if FACTS in sums and all(_sum(folder / name) == expected for name, expected in sums.items()):
            return facts
    except (OSError, ValueError):
        pass
    return None


def _sum(file: Path) -> list[int | str]:
    """Returns size and SHA-256 of a file, of a large one of its size and both ends."""
    size = file.stat().st_size
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        digest.update(content.read(SUMMED))
        if size > 2 * SUMMED:
            content.seek(-SUMMED, os.SEEK_END)
        digest.update(content.read())
    return [size, digest.hexdigest()]


def _build(folder: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    aside = folder.with_name(f".building-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of a build that was killed: nobody else holds the lock
    aside.mkdir()
    try:
        facts = build(aside)
        (aside / "key.json").write_text(key)
        (aside / FACTS).write_text(json.dumps(facts))
        sums = {
            file.relative_to(aside).as_posix(): _sum(file)
            for file in sorted(aside.rglob("*"))
            if file.is_file()
        }
        (aside / SUMS).write_text(json.dumps(sums))
        for file in aside.rglob("*"):
            if file.is_file():
                with open(file, "rb") as content:
                    os.fsync(content.fileno())
        _remove(folder)  # a damaged one
        os.rename(aside, folder)
        return read_object(folder / FACTS)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_tables(tables: Iterable[pa.Table], file: Path) -> int:
    """Writes tables one after the other to an Arrow file, as they come, and returns the number of rows."""
    import pyarrow as pa

    rows, writer = 0, None
    with pa.OSFile(str(file), "wb") as sink:
        for table in tables:
            writer = writer or pa.ipc.new_stream(sink, table.schema)
            writer.write_table(table)
            rows += table.num_rows
        if writer:
            writer.close()
    if not writer:
        file.unlink()
    return rows


def read_rows(file: Path) -> Dataset | None:
    """Returns the rows of an Arrow file, memory-mapped; None when there is no such file, as for no rows."""
    from datasets import Dataset

    return Dataset.from_file(str(file)) if file.exists() else None
