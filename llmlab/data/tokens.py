"""Stored sources as tokens: every row through its mapping, its template and the tokenizer, in parallel, once;
then the stages of `pipeline` that look at all rows: filter, dedupe, split.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.config import SourceConfig
from llmlab.config.sources import shares, short_names
from llmlab.config.training import TrainingConfig
from llmlab.data.cache import cached, read_rows, write_tables
from llmlab.data.counting import REPEATED, RowCounter, SourceCounts, told
from llmlab.data.mixture import mixture
from llmlab.data.opening import OpenSource, open_source
from llmlab.data.pipeline import content_key, refuse_stream, repeats, split
from llmlab.data.rendering import RefusedByTemplate
from llmlab.data.schemas import InvalidRow, Row
from llmlab.data.sources import fingerprint
from llmlab.errors import LabError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PARALLEL_FROM = 5_000  # rows; below, starting processes costs more than it saves
WRITTEN = 10_000  # rows written at once
MALFORMED = "!"  # before the reason of a malformed row
NOTHING = {"cut": False, "note": "", "fault": "", "key": 0}  # of a row that nothing is to be said of
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
        sources: what became of the rows.
    """

    train: Dataset
    held_out: Dataset
    notes: list[str]
    dropped: int
    cut: int
    key: str
    sources: list[SourceCounts]


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
        LabError: when the source cannot be read, or a row is malformed.
    """
    from datasets import Dataset

    opened = open_source(source, needed)
    folder, facts = cached(
        {**key, "source": fingerprint(source), "reading": opened.mapping.key(), "fraction": fraction},
        partial(_build, opened, make, columns, fraction),
    )
    nothing = Dataset.from_dict({name: [] for name in columns})
    train, held_out = (read_rows(folder / f"{name}.arrow") or nothing for name in ("train", "held_out"))
    notes, counts = told(facts, [source])
    return Tokens(train, held_out, notes, facts["dropped"], facts["cut"], folder.name, counts)


def _build(
    opened: OpenSource, make: Make, columns: tuple[str, ...], fraction: float, folder: Path
) -> dict[str, Any]:
    """Writes the rows of a source as tokens, filtered, deduplicated and split; returns what is known of
    them.
    """
    source = opened.config
    opened.look()
    rows = _mapped(opened, make, columns)
    counter, keep = RowCounter(read=len(rows)), np.ones(len(rows), bool)
    faults = rows["fault"][:]
    for number in np.flatnonzero([bool(fault) for fault in faults]).tolist():
        reason = faults[number].removeprefix(MALFORMED)
        opened.refuse_malformed(number, InvalidRow(reason, malformed=reason != faults[number]))
        counter.add(reason, number)
        keep[number] = False
    usable = np.flatnonzero(keep)
    again = usable[repeats(np.array(rows["key"][:])[usable])]
    if len(again):
        drops = source.duplicates == "drop"
        keep[again] = not drops
        counter.add(REPEATED, int(again[0]), len(again), verb="left out" if drops else "kept")
    truncated = np.array(rows["cut"][:]) & keep
    if truncated.any():
        counter.add(
            "longer than `max_length`",
            int(np.flatnonzero(truncated)[0]),
            int(truncated.sum()),
            verb="truncated",
        )
    notes = np.array(rows["note"][:], dtype=object)
    for note in sorted({note for note in notes[keep] if note}):
        noted = np.flatnonzero(keep & (notes == note))
        counter.add(note, int(noted[0]), len(noted), verb="kept")
    held_out = split(np.arange(len(rows)), fraction)
    counter.held_out = int((keep & held_out).sum())
    lists = rows.select_columns(list(columns))
    for name, chosen in (("train", keep & ~held_out), ("held_out", keep & held_out)):
        part = lists.select(np.flatnonzero(chosen)).with_format("arrow")
        write_tables(
            (part[start : start + WRITTEN] for start in range(0, len(part), WRITTEN)),
            folder / f"{name}.arrow",
        )
    return {"counters": [counter.to_json()], "dropped": counter.dropped, "cut": int(truncated.sum())}


@dataclass
class SourceTokens:
    """The sources of a run as tokens.

    Attributes:
        config: of the run.
        parts: the training sources.
        held_out: validation rows by the name of their source; sources without any are left out.
        held_out_keys: of the cache, by name.
        notes: one line for each reason why rows were left out or changed.
        sources: what became of the rows of each source.
    """

    config: TrainingConfig
    parts: list[Tokens]
    held_out: dict[str, Dataset]
    held_out_keys: dict[str, str]
    notes: list[str]
    sources: list[SourceCounts]

    def mixed(self, portions: list[float] | None = None) -> Dataset:
        """Returns one pass over the sources, each with its share: that of its weight, or `portions`."""
        from datasets import concatenate_datasets

        config, sizes = self.config, [len(part.train) for part in self.parts]
        sources, rows = mixture(sizes, portions or shares(config.datasets), config.seed, config.mixture_stop)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        together = concatenate_datasets([part.train for part in self.parts])
        return together.select((starts[sources] + rows).astype(np.int64))

    def counts(self) -> dict[str, int]:
        """Returns how many rows of the training sources were left out and cut."""
        return {
            "train_dropped": sum(part.dropped for part in self.parts),
            "train_cut": sum(part.cut for part in self.parts),
        }


def tokenise_sources(
    config: TrainingConfig, needed: tuple[str, ...], make: Make, key: dict[str, Any], columns: tuple[str, ...]
) -> SourceTokens:
    """Returns the stored sources of a run as tokens.

    Args:
        config: of the run.
        needed: shapes that the method can use.
        make: from a canonical row to lists of token ids, and `cut` where it was shortened; raises
            `InvalidRow`.
        key: what `make` depends on, for the cache.
        columns: names of the lists that `make` gives.

    Raises:
        LabError: when a source is streamed, cannot be read, or has a malformed row.
    """
    for source in [*config.datasets, *config.eval_datasets]:
        refuse_stream(source)
    fraction = 0.0 if config.eval_datasets else config.eval_fraction
    parts = [tokenised(source, needed, make, key, fraction, columns) for source in config.datasets]
    others = [tokenised(source, needed, make, key, 0.0, columns) for source in config.eval_datasets]
    if others:
        names = short_names(config.eval_datasets)
        held_out = {name: (part.train, part.key) for name, part in zip(names, others, strict=True)}
    else:
        names = short_names(config.datasets)
        held_out = {name: (part.held_out, part.key) for name, part in zip(names, parts, strict=True)}
    return SourceTokens(
        config,
        parts,
        {name: rows for name, (rows, _) in held_out.items() if len(rows)},
        {name: part_key for name, (_, part_key) in held_out.items()},
        [note for part in (*parts, *others) for note in part.notes],
        [counts for part in (*parts, *others) for counts in part.sources],
    )


def require_rows(rows: Dataset, text: str, notes: list[str]) -> None:
    """Refuses a mixture of nothing.

    Raises:
        LabError: with the reasons why rows were left out.
    """
    if len(rows) == 0:
        why = "; ".join(notes) or "every row is held out"
        raise LabError(
            f"{text}: {why}",
            where="datasets",
            remedy="raise `max_length` or look at the rows: `llmlab data inspect`",
        )


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
    features = Features(
        {
            **lists,
            "cut": Value("bool"),
            "note": Value("string"),
            "fault": Value("string"),
            "key": Value("int64"),
        }
    )

    def convert(row: Row) -> dict[str, Any]:
        empty: dict[str, Any] = {**{name: [] for name in columns}, **NOTHING}
        try:
            canonical = opened.mapping(dict(row))  # datasets hands parallel workers a mapping of its own
            key = content_key(canonical)
            return {**empty, **make(canonical), "key": key}
        except InvalidRow as invalid:
            return {**empty, "fault": f"{MALFORMED if invalid.malformed else ''}{invalid.reason}"}
        except RefusedByTemplate as refusal:
            return {**empty, "fault": f"{MALFORMED}{refusal.what}"}

    if len(rows) < PARALLEL_FROM:  # without datasets' hashing of closures and its files
        converted = [convert(row) for row in rows]
        return Dataset.from_dict(
            {name: [row[name] for row in converted] for name in features}, features=features
        )
    workers = min(8, os.cpu_count() or 1)
    return rows.map(
        convert,
        remove_columns=rows.column_names,
        features=features,
        num_proc=workers if workers > 1 else None,
        load_from_cache_file=False,
    )
