"""From the name of a source to its rows: files, folders, hub datasets, and what ships with the package."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from llmlab.config import SourceConfig
from llmlab.errors import LabError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SHIPPED = {"llmlab:moby-dick": "moby-dick.jsonl"}
TEXT_FILES = (".txt", ".md")
TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
COMPRESSED = (".gz", ".zst")
HUB_ALIASES = {
    "glue": "nyu-mll/glue",
    "imdb": "stanfordnlp/imdb",
    "wikitext": "Salesforce/wikitext",
    "gsm8k": "openai/gsm8k",
}
PIECE = 20_000  # characters: a long text becomes documents of about this length, cut between paragraphs


def load_rows(source: SourceConfig) -> Dataset | IterableDataset:
    """Returns the rows of a source with its own columns.

    Raises:
        LabError: when the source does not exist, cannot be read, holds nothing, or is on a hub that cannot be reached.
    """
    files = local_files(source.name)
    rows = _from_files(files, source) if files else _from_hub(source)
    if source.max_rows:
        rows = rows.take(source.max_rows)
    if not source.streaming and len(rows) == 0:
        raise LabError("holds no rows", where=source.name, remedy="point to a file or folder with text in it")
    return rows


def local_files(name: str) -> list[Path]:
    """Returns the files behind a name, sorted; empty when it is the id of a hub dataset.

    Raises:
        LabError: when a shipped corpus, a path or a folder's content does not exist.
    """
    if name.startswith("llmlab:"):
        if name not in SHIPPED:
            raise LabError(f"no corpus {name!r} ships with llmlab", remedy=f"there is {', '.join(SHIPPED)}")
        return [Path(str(resources.files("llmlab.data") / "corpus" / SHIPPED[name]))]
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) and not file.name.startswith("."))
        if not files:
            raise LabError("no readable files in this folder", where=name, remedy=f"readable are {_readable()}")
        return files
    if path.exists():
        if not _kind(path):
            raise LabError(
                f"files of type {path.suffix or 'unknown'!r} cannot be read",
                where=name,
                remedy=f"readable are {_readable()}",
            )
        return [path]
    if (path.suffix and _kind(path)) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LabError("there is no such file or folder", where=name)
    return []


def fingerprint(source: SourceConfig, rows: Dataset | IterableDataset) -> str:
    """Returns a text that changes whenever the rows of the source do: content hashes for files, the library's for hubs."""
    files = local_files(source.name)
    if not files:
        content = "" if source.streaming else rows._fingerprint
        return f"{source.name}:{source.subset}:{source.split}:{source.max_rows}:{content}"
    digest = hashlib.sha256(repr((source.format, source.max_rows)).encode())
    for file in files:
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _readable() -> str:
    return " ".join((*TEXT_FILES, *TABLES)) + ", each also .gz"


def _kind(path: Path) -> str:
    """Returns "text", a table format, or "" for what cannot be read."""
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    return "text" if suffix in TEXT_FILES else TABLES.get(suffix, "")


def _from_files(files: list[Path], source: SourceConfig) -> Dataset | IterableDataset:
    from datasets import Dataset, IterableDataset, load_dataset
    from datasets.exceptions import DatasetGenerationError

    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise LabError(f"mixes {' and '.join(sorted(kinds))} files", where=source.name, remedy="name one kind at a time")
    kind = kinds.pop()
    for file in files:
        _check_readable(file, kind)
    if kind == "text":
        if source.streaming:
            return IterableDataset.from_generator(_documents, gen_kwargs={"files": [str(f) for f in files]})
        return Dataset.from_list(list(_documents([str(file) for file in files])))
    try:
        rows = load_dataset(kind, data_files=[str(f) for f in files], split="train", streaming=source.streaming)
    except (DatasetGenerationError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        raise LabError(f"cannot be read as {kind} ({str(cause).splitlines()[0][:160]})", where=source.name) from None
    return rows


def _check_readable(file: Path, kind: str) -> None:
    try:
        with open(file, "rb") as content:
            head = content.read(4096)
    except OSError as error:
        raise LabError(f"cannot be read ({error.strerror})", where=str(file)) from None
    if not head.strip():
        raise LabError("is empty", where=str(file), remedy="there is nothing to learn from it")
    if kind in ("text", "json", "csv") and file.suffix not in COMPRESSED and b"\0" in head:
        raise LabError("is a binary file, not text", where=str(file), remedy=f"readable are {_readable()}")


def _documents(files: list[str]) -> Iterator[dict[str, str]]:
    """Yields the documents of text files: a file, or pieces of a long one cut between paragraphs."""
    for name in files:
        opener = gzip.open if name.endswith(".gz") else open
        lines: list[str] = []
        size = 0
        try:
            with opener(name, "rt", encoding="utf-8") as file:
                for line in file:
                    lines.append(line)
                    size += len(line)
                    if size >= PIECE and not line.strip():
                        yield {"text": "".join(lines).strip()}
                        lines, size = [], 0
        except UnicodeDecodeError as error:
            raise LabError(
                f"is not UTF-8 text ({error.reason} at byte {error.start})",
                where=name,
                remedy="convert it with iconv, or leave it out",
            ) from None
        if text := "".join(lines).strip():
            yield {"text": text}


def _from_hub(source: SourceConfig) -> Dataset | IterableDataset:
    from datasets import load_dataset

    name = HUB_ALIASES.get(source.name, source.name)
    try:
        return load_dataset(name, source.subset, split=source.split, streaming=source.streaming)
    except Exception as error:  # the hub's client raises many kinds: offline, unknown id, gated, wrong subset or split
        text = " ".join(str(error).split())[:160]
        if "BuilderConfig" in text or "Unknown split" in text or "Config name is missing" in text:
            raise LabError(text, where=f"{source.name}", remedy="choose a subset and split it has") from None
        raise LabError(
            f"the dataset {source.name!r} is not on this machine and the hub did not give it ({type(error).__name__})",
            remedy=f"check the id and the network, or use a local file or folder ({_readable()}) or {', '.join(SHIPPED)}",
        ) from None
