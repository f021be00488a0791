"""Stored sources as tokens: every row through its reading, its template and the tokenizer, in parallel,
once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.config import SourceConfig
from llmlab.data.cache import cached, read_rows, write_tables
from llmlab.data.canonical import OpenSource, RowCounter, open_source
from llmlab.data.mixture import is_held_out
from llmlab.data.schemas import InvalidRow, Row
from llmlab.data.sources import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PARALLEL_FROM = 5_000  # rows; below, starting processes costs more than it saves
WRITTEN = 10_000  # rows written at once
Make = Callable[[Row], dict[str, Any]]


@dataclass
class Tokens:
    """A source as tokens.

    Attributes:
        train: rows for training.
        held_out: rows for validation.
        notes: one line for each reason why rows were left out or changed.
        dropped: number of rows left out, of training and validation.
        cut: number of rows that were shortened.
        key: of the cache.
    """

    train: Dataset
    held_out: Dataset
    notes: list[str]
    dropped: int
    cut: int
    key: str


def tokenised(
    source: SourceConfig,
    needed: tuple[str, ...],
    make: Make,
    key: dict[str, Any],
    fraction: float,
    columns: tuple[str, ...],
) -> Tokens:
    """Returns the rows of a stored source as tokens, from the cache where they are there.

    Args:
        source: what to read.
        needed: shapes that the method can use.
        make: from a canonical row to lists of token ids, and `cut` where it was shortened; raises
            `InvalidRow`.
        key: what `make` depends on, for the cache.
        fraction: of the rows to hold out.
        columns: names of the lists that `make` gives.

    Raises:
        LabError: when the source cannot be read, or a row is of a wrong form.
    """
    opened = open_source(source, needed)

    def build(folder: Path) -> dict[str, Any]:
        opened.look()
        rows = _mapped(opened, make, columns)
        faults, keys = rows["fault"][:], np.array(rows["key"][:])
        counter, keep = RowCounter(), np.ones(len(rows), bool)
        for number in np.flatnonzero([bool(fault) for fault in faults]).tolist():
            if faults[number].startswith("!") and source.bad_rows == "stop":
                raise opened.bad_row(number, faults[number][1:])
            counter.add(faults[number].removeprefix("!"), number)
            keep[number] = False
        again = _again(keys, keep)
        notes = counter.notes(source)
        if len(again):
            doubles = RowCounter()
            doubles.add("the same as an earlier row", int(again[0]), len(again))
            if source.duplicates == "drop":
                keep[again] = False
                counter.add("the same as an earlier row", int(again[0]), len(again))
            notes += doubles.notes(source, "left out" if source.duplicates == "drop" else "kept")
        cut = np.array(rows["cut"][:]) & keep
        if cut.any():
            shortened = RowCounter()
            shortened.add("longer than `max_length`", int(np.flatnonzero(cut)[0]), int(cut.sum()))
            notes += shortened.notes(source, "cut")
        held = is_held_out(np.arange(len(rows)), fraction)
        lists = rows.select_columns(list(columns))
        for name, chosen in (("train", keep & ~held), ("held_out", keep & held)):
            part = lists.select(np.flatnonzero(chosen)).with_format("arrow")
            write_tables(
                (part[start : start + WRITTEN] for start in range(0, len(part), WRITTEN)),
                folder / f"{name}.arrow",
            )
        return {"notes": notes, "dropped": counter.total, "cut": int(cut.sum())}

    from datasets import Dataset

    folder, facts = cached(
        {**key, "source": fingerprint(source), "reading": opened.mapping.key(), "fraction": fraction}, build
    )
    nothing = Dataset.from_dict({name: [] for name in columns})
    train, held_out = (read_rows(folder / f"{name}.arrow") or nothing for name in ("train", "held_out"))
    return Tokens(train, held_out, facts["notes"], facts["dropped"], facts["cut"], folder.name)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a hash of the whole tokenizer: vocabulary, merges, pre-tokenisation, template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()  # what earlier calls left set is no part of it
        backend.no_padding()
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256((text + str(tokenizer.chat_template)).encode()).hexdigest()


def _mapped(opened: OpenSource, make: Make, columns: tuple[str, ...]) -> Dataset:
    from datasets import Dataset, Features, List, Value

    rows = opened.rows
    lists = {name: List(Value("int32")) for name in columns}
    features = Features({**lists, "cut": Value("bool"), "fault": Value("string"), "key": Value("int64")})

    def convert(row: Row) -> dict[str, Any]:
        empty: dict[str, Any] = {**{name: [] for name in columns}, "cut": False, "fault": "", "key": 0}
        try:
            canonical = opened.mapping(
                dict(row)
            )  # the library hands a mapping of its own to parallel workers
            content = hashlib.sha256(repr(canonical).encode()).digest()[:8]
            return {**empty, **make(canonical), "key": int.from_bytes(content, "big", signed=True)}
        except InvalidRow as fault:
            return {**empty, "fault": f"{'!' if fault.malformed else ''}{fault.reason}"}

    if len(rows) < PARALLEL_FROM:  # without the library's hashing of closures and its files
        made = [convert(row) for row in rows]
        return Dataset.from_dict({name: [row[name] for row in made] for name in features}, features=features)
    workers = min(8, os.cpu_count() or 1)
    return rows.map(
        convert,
        remove_columns=rows.column_names,
        features=features,
        num_proc=workers if workers > 1 else None,
        load_from_cache_file=False,
    )


def _again(keys: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Returns the numbers of the kept rows that repeat an earlier one."""
    kept = np.flatnonzero(keep)
    _, first = np.unique(keys[kept], return_index=True)
    mask = np.ones(len(kept), bool)
    mask[first] = False
    return kept[mask]
