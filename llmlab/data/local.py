"""The files behind a name: one file, those of a folder, or what ships with the package."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from llmlab.config import SourceConfig
from llmlab.data.collection import COLLECT, COLLECTED, SOURCE
from llmlab.data.faults import numbered
from llmlab.errors import LabError
from llmlab.files import in_home

PASSAGES = {"train": "passages.train.jsonl.gz", "test": "passages.test.jsonl.gz"}
SHIPPED = {
    "llmlab:moby-dick": {"train": "moby-dick.jsonl"},
    **dict.fromkeys(("llmlab:passages", "llmlab:passage-pairs", "llmlab:passage-claims"), PASSAGES),
    "llmlab:questions": {"test": "questions.jsonl", "train": "questions.jsonl"},
    "llmlab:spam-mails": {"train": "spam-mails.train.jsonl.gz", "test": "spam-mails.test.jsonl.gz"},
}
TEXT_FILES = (".txt", ".md")
TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
COMPRESSED = (".gz", ".zst")
MOST_ENTRIES = 100_000  # of a folder and those inside it
HASHED_WHOLE = 4 << 30  # bytes: larger files are told apart by size and time


def local_files(name: str, split: str = "train") -> list[Path]:
    """Returns the files behind a name, sorted; empty when it is the id of a hub dataset.

    Raises:
        LabError: when a shipped corpus, a path or a folder's content does not exist, or part of a folder
            cannot be read.
    """
    if name == SOURCE:
        if not COLLECTED.exists():
            raise LabError(
                "nothing was collected yet", where=f"{name} ({COLLECTED})", remedy=f"judge answers: {COLLECT}"
            )
        return [COLLECTED]
    if name.startswith("llmlab:"):
        if name not in SHIPPED:
            raise LabError(
                f"llmlab ships no corpus {name!r}", remedy=f"there are {', '.join([*SHIPPED, SOURCE])}"
            )
        if split not in SHIPPED[name]:
            raise LabError(
                f"has no split {split!r}", where=name, remedy=f"its splits are {', '.join(SHIPPED[name])}"
            )
        return [Path(str(resources.files("llmlab.data") / "corpus" / SHIPPED[name][split]))]
    path = in_home(name)
    if path.is_dir():
        files = sorted(_inside(path))
        if not files:
            raise LabError(
                "no readable files in this folder", where=name, remedy=f"readable are {readable_files()}"
            )
        return _of_split(files, path, split)
    if path.exists():
        if not path.is_file():
            raise LabError(
                "is a pipe or a device, not a file", where=name, remedy="write its output to a file first"
            )
        if not file_kind(path):
            raise LabError(
                f"files of type {path.suffix or 'unknown'!r} cannot be read",
                where=name,
                remedy=f"readable are {readable_files()}",
            )
        return _of_split([path], path, split)
    if (path.suffix and file_kind(path)) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LabError("there is no such file or folder", where=name)
    return []


def _inside(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder that can hold rows."""

    def unreadable(error: OSError) -> None:
        raise LabError(
            f"cannot be read ({error.strerror})",
            where=str(error.filename),
            remedy="make it readable, or take it out of the folder",
        )

    seen = 0
    for place, folders, names in os.walk(folder, onerror=unreadable):
        seen += len(folders) + len(names)
        if seen > MOST_ENTRIES:
            raise LabError(
                f"has more than {MOST_ENTRIES:,} entries",
                where=str(folder),
                remedy="name the folder with the data alone",
            )
        for file in (Path(place, name) for name in names if not name.startswith(".")):
            if file_kind(file) and file.is_file():
                yield file


def _of_split(files: list[Path], path: Path, split: str) -> list[Path]:
    """Returns the files of a split: all of them are "train", another split are those in a folder or with a
    name of its own.

    Raises:
        LabError: when there are none.
    """
    if split == "train":
        return files
    inside = [
        (file, (*file.relative_to(path).parts[:-1], re.split(r"[.-]", file.name)[0]))
        for file in files
        if file != path
    ]
    matches = [file for file, parts in inside if split in parts]
    if not matches:
        raise LabError(
            f"`split` {split!r}: no such split in these files",
            where=str(path),
            remedy=(
                f"leave it out, or name the files themselves; of a folder, files `{split}.*` or `{split}-*`"
                " are that split"
            ),
        )
    return matches


def contents_hash(source: SourceConfig) -> str:
    """Returns a hash of the files behind a source, whatever they are called and whenever they were written;
    "" for the hub.

    Of a file above `HASHED_WHOLE` bytes its size, its beginning and its end are hashed.

    Raises:
        LabError: when they do not exist.
        OSError: when they cannot be read.
    """
    files = local_files(source.name, source.split)
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with open(file, "rb") as content:
            if size <= HASHED_WHOLE:
                digest.update(hashlib.file_digest(content, "sha256").digest())
                continue
            digest.update(f"{size}".encode() + content.read(1 << 20))
            content.seek(-(1 << 20), 2)
            digest.update(content.read())
    return digest.hexdigest() if files else ""


def row_place(source: SourceConfig, number: int) -> str:
    """Returns where row `number` (counted from 0) of a source is: file and row, counted from 1."""
    files = [] if source.name in SHIPPED else local_files(source.name, source.split)
    if source.max_rows and not source.streaming:
        return f"{source.name}, row {number + 1} of {source.max_rows:,}"
    return (
        numbered(files, [file_kind(file) for file in files], number)
        if files
        else f"{source.name}, row {number + 1}"
    )


def readable_files() -> str:
    """Returns the suffixes of files that can be read, in words."""
    return " ".join((*TEXT_FILES, *TABLES)) + ", each also .gz and .zst"


def file_kind(path: Path) -> str:
    """Returns "text", a table format, or "" for what cannot be read."""
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    return "text" if suffix in TEXT_FILES else TABLES.get(suffix, "")
