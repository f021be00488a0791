"""Prepared data on disk: folders of Arrow files keyed by a fingerprint of everything they depend on, complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.errors import LabError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

FORMAT = 6  # raised whenever prepared rows change their meaning
FACTS = "facts.json"


def cache_root() -> Path:
    """Returns the folder of prepared data: `LLMLAB_CACHE`, else `llmlab` in the user's cache folder."""
    base = os.environ.get("LLMLAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmlab"
    return Path(base)


def cached(key: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Returns the folder stored under `key` and the facts kept with it, building both first where there are none.

    `build` gets an empty folder to write to and returns the facts. The folder is written aside, synced and renamed: a
    killed build leaves nothing that would be taken for data. Of two processes that want the same, the second waits for
    the first and uses what it made.

    Raises:
        LabError: when the cache folder cannot be written.
    """
    from filelock import FileLock

    text = json.dumps({**key, "format": FORMAT}, sort_keys=True, default=str)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    folder = cache_root() / "data" / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.exists():
            with FileLock(folder.with_name(f".{name}.lock")):  # the system frees it when its holder dies
                if not folder.exists():
                    _build(folder, text, build)
    except OSError as error:
        raise LabError(
            f"prepared data cannot be written ({error.strerror or error})",
            where=str(folder.parent),
            remedy="free space, or set LLMLAB_CACHE to another folder",
        ) from None
    return folder, json.loads((folder / FACTS).read_text())


def _build(folder: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> None:
    aside = folder.with_name(f".building-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of a build that was killed: nobody else holds the lock
    aside.mkdir()
    try:
        facts = build(aside)
        (aside / "key.json").write_text(key)
        (aside / FACTS).write_text(json.dumps(facts))
        for file in aside.rglob("*"):
            if file.is_file():
                with open(file, "rb") as content:
                    os.fsync(content.fileno())
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
