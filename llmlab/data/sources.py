"""From the name of a source to its rows: files, folders, hub datasets, and what ships with the package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from llmlab.config import SourceConfig
from llmlab.data.catalogue import entry, real_id
from llmlab.data.faults import SCANNED_OF_STREAM, explain, not_utf8, unbounded
from llmlab.data.local import COMPRESSED, HASHED_WHOLE, SHIPPED, file_kind, local_files, readable_files
from llmlab.errors import LabError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

PIECE = 20_000  # characters: a long text file becomes rows of at least this length, cut between paragraphs
# columns that say whether the next row of a text file is the same document, and whether the one before is
GOES_ON, CONTINUES = "_goes_on", "_continues"


def load_rows(
    source: SourceConfig, *, streaming: bool | None = None, piece: int = PIECE
) -> Dataset | IterableDataset:
    """Returns the rows of a source with its own columns.

    Args:
        source: what to read.
        streaming: read as a stream whatever the source says.
        piece: characters of a text file after which a new row begins with the next paragraph.

    Raises:
        LabError: when the source does not exist, cannot be read, holds nothing, or is on a hub that cannot be
            reached.
    """
    stream = source.streaming if streaming is None else streaming
    files = local_files(source.name, source.split)
    if files and source.subset and not source.name.startswith("llmlab:"):
        raise LabError(
            f"`subset` {source.subset!r}: files have no subsets",
            where=source.name,
            remedy="name the files themselves",
        )
    rows = _from_files(files, source, stream, piece) if files else _from_hub(source, stream)
    if not stream and len(rows) == 0:
        raise LabError("holds no rows", where=source.name, remedy="name a file or folder that contains text")
    if source.max_rows and stream:
        return rows.take(source.max_rows)
    if source.max_rows and source.max_rows < len(
        rows
    ):  # spread evenly: many datasets are sorted by label or topic
        return rows.select([index * len(rows) // source.max_rows for index in range(source.max_rows)])
    return rows


def fingerprint(source: SourceConfig) -> str:
    """Returns a text that changes whenever the rows of the source do, or the way they are read."""
    how = source.model_dump(mode="json", exclude={"weight", "name"})
    digest = hashlib.sha256(repr(sorted(how.items())).encode())
    files = local_files(source.name, source.split)
    if not files:  # the hub's own revision: what the cache of datasets is keyed by
        rows = load_rows(source)
        digest.update(f"{real_id(source.name)}:{getattr(rows, '_fingerprint', '')}".encode())
    for file in files:
        status = file.stat()
        if status.st_size > HASHED_WHOLE:
            digest.update(f"{file}:{status.st_size}:{status.st_mtime_ns}".encode())
            continue
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _from_files(
    files: list[Path], source: SourceConfig, stream: bool, piece: int
) -> Dataset | IterableDataset:
    from datasets import Dataset, IterableDataset, load_dataset

    kinds = {file_kind(file) for file in files}
    if len(kinds) > 1:
        raise LabError(
            f"mixes {' and '.join(sorted(kinds))} files", where=source.name, remedy="name one kind at a time"
        )
    kind = kinds.pop()
    for file in files:
        _check_readable(file, kind)
        if kind in ("text", "json", "csv") and (
            fault := unbounded(file, kind, most=SCANNED_OF_STREAM if stream else None)
        ):
            raise fault
    names = [str(file) for file in files]
    if kind == "json" and not stream:  # its reader takes any bytes, and fails when a row is looked at
        for file in files:
            if fault := not_utf8(file):
                raise fault
    try:
        if kind == "text":
            if stream:
                return IterableDataset.from_generator(_documents, gen_kwargs={"files": names, "piece": piece})
            changed = [
                (file.stat().st_size, file.stat().st_mtime_ns) for file in files
            ]  # part of the key of datasets
            return Dataset.from_generator(
                _documents, gen_kwargs={"files": names, "piece": piece, "changed": changed}
            )
        return load_dataset(kind, data_files=names, split="train", streaming=stream)
    except Exception as error:  # of datasets, its readers and the decompressors, each with kinds of its own
        raise damaged(source, error) from None


def damaged(source: SourceConfig, error: BaseException) -> LabError:
    """Returns what is wrong with a source whose reading failed: file, row, and what to do."""
    while not isinstance(error, LabError) and (cause := error.__cause__ or error.__context__):
        error = cause
    if isinstance(error, LabError):
        return error
    files = local_files(source.name, source.split)
    if files:
        return explain(files, file_kind(files[0]), error)
    text = (" ".join(str(error).split()) or type(error).__name__)[:200]
    return LabError(
        f"reading failed ({text})", where=source.name, exit_code=1, remedy="check the network and start again"
    )


def _check_readable(file: Path, kind: str) -> None:
    try:
        with open(file, "rb") as content:
            head = content.read(4096)
    except OSError as error:
        raise LabError(f"cannot be read ({error.strerror})", where=str(file)) from None
    if not head.strip():
        raise LabError("is empty", where=str(file), remedy="there is nothing to learn from it")
    if kind in ("text", "json", "csv") and file.suffix not in COMPRESSED and b"\0" in head:
        raise LabError(
            "is a binary file, not text", where=str(file), remedy=f"readable are {readable_files()}"
        )


def open_text(file: Path) -> TextIO:
    """Opens a text file, unpacking .gz and .zst."""
    import fsspec

    opened: TextIO = fsspec.open(str(file), "rt", encoding="utf-8", compression="infer").open()
    return opened


def _documents(files: list[str], piece: int, changed: Any = None) -> Iterator[dict[str, Any]]:
    """Yields text files as rows: a file, or pieces of a long one cut between paragraphs,
    all but the last going on.
    """
    for name in files:
        lines: list[str] = []
        size, before, continues = 0, "", False
        try:
            with open_text(Path(name)) as file:
                for line in file:
                    lines.append(line)
                    size += len(line)
                    if size >= piece and not line.strip():
                        text, lines, size = "".join(lines).strip(), [], 0
                        if before and text:
                            yield {"text": before, GOES_ON: True, CONTINUES: continues}
                            continues = True
                        before = text or before
        except (UnicodeDecodeError, EOFError, OSError) as error:
            raise explain([Path(name)], "text", error) from None
        text = "".join(lines).strip()
        if before:
            yield {"text": before, GOES_ON: bool(text), CONTINUES: continues}
        if text:
            yield {"text": text, GOES_ON: False, CONTINUES: bool(before)}


def _from_hub(source: SourceConfig, stream: bool) -> Dataset | IterableDataset:
    from datasets import load_dataset

    name = real_id(source.name)
    try:
        return load_dataset(name, source.subset, split=source.split, streaming=stream)
    except (
        Exception
    ) as error:  # the hub's client raises many kinds: offline, unknown id, gated, wrong subset or split
        text = " ".join(str(error).split())
        if any(
            words in text
            for words in ("BuilderConfig", "Config name is missing", "Unknown split", "Bad split")
        ):
            raise LabError(
                f"has no subset {source.subset!r} with a split {source.split!r}",
                where=name,
                remedy=there_are(source) or text[:300],
            ) from None
        entry_of_catalogue = entry(source.name, source.subset)
        hint = (
            f" (the catalogue knows it: {entry_of_catalogue.becomes}, {entry_of_catalogue.rows} rows)"
            if entry_of_catalogue
            else ""
        )
        raise LabError(
            f"the dataset {source.name!r} is not on this machine and could not be downloaded from the hub"
            f" ({type(error).__name__}){hint}",
            remedy=(
                f"check the id and the network, or use a local file or folder ({readable_files()}) or"
                f" {', '.join(SHIPPED)}"
            ),
        ) from None


def there_are(source: SourceConfig) -> str:
    """Returns which subsets or splits a hub dataset has, in words;
    "" where neither hub nor catalogue says.
    """
    from datasets import get_dataset_config_names, get_dataset_split_names

    name = real_id(source.name)
    try:
        subsets = get_dataset_config_names(name)
        if source.subset in subsets or (source.subset is None and len(subsets) == 1):
            return f"its splits are {', '.join(get_dataset_split_names(name, source.subset or subsets[0]))}"
        return f"its subsets are {', '.join(subsets[:40])}" + (
            f" and {len(subsets) - 40} more" if len(subsets) > 40 else ""
        )
    except Exception:  # offline: what the catalogue knows has to do
        from llmlab.data.catalogue import CATALOGUE

        entries = [dataset for dataset in CATALOGUE if dataset.id == name]
        subsets = [subset for dataset in entries for subset in dataset.subsets]
        return f"its subsets are {', '.join(subsets)}" if subsets else ""
