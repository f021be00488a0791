"""Every run below a folder as one row each, without reading each record anew.

The rows are kept in `runs-*.json` in the cache folder, each with the sizes, times and numbers (inode) of the
files that it was read from. A row counts only while all of them are the same, and is kept only when its
files were at rest for `SETTLED` seconds before they were read: a clock is coarser than two writes in a row.
So a run that has changed is always read again, and without the cache the rows are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from llmlab.errors import LabError
from llmlab.files import cache_root, read_bytes, write_text_atomically
from llmlab.runs.figures import RESULT_FIGURES
from llmlab.runs.lock import was_killed
from llmlab.runs.record import RECORD, read_record
from llmlab.runs.tags import TAGS, tags_of

FORMAT = 2  # raised whenever a row holds something else
SETTLED = 2.0  # seconds
LARGEST = 50_000_000  # bytes of the kept rows
# folders inside a run that hold no other run
OF_A_RUN = re.compile(r"best|final|tensorboard|evaluations|checkpoint-\d+|set-aside-\d+|\..*")

Signature = list[list[int] | None]


@dataclass(frozen=True)
class RunRow:
    """What a list shows of a run.

    Attributes:
        path: of its folder.
        started: when it began, as its record says it; "" where it does not.
        status: "running", "done", "stopped" ...; "killed" where a running one has no process, "damaged" where
            the record is, "?" where it does not say.
        kind: of its config, "?" where it does not say.
        step: updates that are done, None where it does not say.
        parent: what it started from, "" for nothing.
        result: name of the folder of its model, "" for none.
        damage: what is wrong with its record, in words; "" for nothing.
        parameters: of its model, None where it does not say.
        figures: held-out figures at its end.
        tags: that a person gave it.
    """

    path: Path
    started: str = ""
    status: str = "?"
    kind: str = "?"
    step: int | None = None
    parent: str = ""
    result: str = ""
    damage: str = ""
    parameters: int | None = None
    figures: dict[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


Entry = tuple[Signature, RunRow]


def run_rows(root: Path) -> list[RunRow]:
    """Returns the row of every run below a folder, newest first."""
    kept_file, top = _kept_file(root), os.path.relpath(root)
    kept, entries = _kept(kept_file, top), {}
    rows = []
    for folder in _run_folders(top):
        signature, entry = _signature(folder), kept.get(folder)
        if entry is None or entry[0] != signature:
            now = time.time_ns()
            entry = (signature, _read(folder))
            settled = all(one is None or now - one[0] > SETTLED * 1e9 for one in signature)
            if settled and signature == _signature(folder):
                entries[folder] = entry
        else:
            entries[folder] = entry
        row = entry[1]
        if row.status == "running" and was_killed(row.path):  # no file changes when a process dies
            row = replace(row, status="killed")
        rows.append(row)
    if entries != kept:
        _keep(kept_file, top, entries)
    return sorted(rows, key=lambda row: row.started, reverse=True)


def has_runs(root: Path) -> bool:
    """Returns whether there is a run below a folder."""
    return next(_run_folders(os.path.relpath(root)), None) is not None


def _run_folders(root: str) -> Iterator[str]:
    """Yields each folder with a record; links are not followed."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                entries = list(listing)
        except OSError:
            continue
        is_run = any(entry.name == RECORD for entry in entries)
        if is_run:
            yield folder
        waiting += [
            entry.path
            for entry in entries
            if not (is_run and OF_A_RUN.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False)
        ]


def _signature(folder: str) -> Signature:
    return [_file_signature(f"{folder}/{name}") for name in (RECORD, TAGS)]


def _file_signature(path: str) -> list[int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [max(stat.st_mtime_ns, stat.st_ctime_ns), stat.st_mtime_ns, stat.st_size, stat.st_ino]


def _read(folder: str) -> RunRow:
    path = Path(folder)
    record, damage = read_record(path)
    if damage:
        return RunRow(path, status="damaged", damage=damage, tags=tags_of(path))
    figures = record.get("metrics") or {}
    return RunRow(
        path,
        started=record.get("started") or "",
        status=record.get("status") or "?",
        kind=(record.get("config") or {}).get("kind") or "?",
        step=record.get("step"),
        parent=record.get("parent") or "",
        result=record.get("result") or "",
        parameters=record.get("parameters"),
        figures={name: figures[name] for name in RESULT_FIGURES if figures.get(name) is not None},
        tags=tags_of(path),
    )


def _kept_file(root: Path) -> Path:
    where = hashlib.sha256(str(root.absolute()).encode(errors="surrogateescape")).hexdigest()[:16]
    return cache_root() / f"runs-{where}.json"


def _kept(file: Path, top: str) -> dict[str, Entry]:
    """Returns the kept rows by folder; none where they are damaged or another version's."""
    try:
        data = json.loads(read_bytes(file, LARGEST))
        if data["format"] != FORMAT:
            return {}
        entries = {}
        for name, (signature, values) in data["runs"].items():
            folder = f"{top}/{name}" if name else top
            values["tags"] = tuple(values["tags"])
            entries[folder] = (signature, RunRow(Path(folder), **values))
        return entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _keep(file: Path, top: str, entries: dict[str, Entry]) -> None:
    runs = {}
    for folder, (signature, row) in entries.items():
        values = {name: value for name, value in asdict(row).items() if name != "path"}
        runs[folder[len(top) + 1 :]] = (signature, values)
    with suppress(LabError):  # a cache that cannot be written is none
        write_text_atomically(file, json.dumps({"format": FORMAT, "runs": runs}))
