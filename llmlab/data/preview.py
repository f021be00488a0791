"""What can be said of a run's data before it: each source, a row as the model will see it, and rows that are
held out and trained on as well. Only what is on this machine is looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers.utils import logging

from llmlab.config import ModelConfig, PretrainConfig, SourceConfig, load_config
from llmlab.config.sources import shares
from llmlab.config.training import TrainingConfig
from llmlab.data.catalogue import Entry, entry
from llmlab.data.cleaning import overlap
from llmlab.data.inspect import sample_pieces
from llmlab.data.local import local_files
from llmlab.data.opening import open_source
from llmlab.data.pipeline import SourceRows
from llmlab.data.schemas import InvalidRow
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.errors import LabError
from llmlab.runs.folder import find_model

COMPARED = 100_000  # rows of a source in which the same ones are looked for
SEARCHED = 20_000_000  # bytes of files in which phrases are looked for before a run


@dataclass(frozen=True)
class Overlap:
    """Rows of a validation source that are trained on as well.

    Attributes:
        source: of the validation.
        shared: its rows that are trained on.
        looked_at: its rows that were compared, at most `COMPARED`.
        contaminated: its rows that share 13 words in a row with training data, the same ones included; None
            where the files are too large to look quickly.
    """

    source: SourceConfig
    shared: int
    looked_at: int
    contaminated: int | None = None


@dataclass(frozen=True)
class RowPreview:
    """A row as the model will see it.

    Attributes:
        pieces: of its text, and whether they bear loss.
        answer_ends: whether what is learned holds a token that stops the model; True where nothing has to.
    """

    pieces: list[tuple[str, bool]]
    answer_ends: bool = True

    @property
    def given(self) -> str:
        """What the model reads and does not learn."""
        return "".join(piece for piece, learned in self.pieces if not learned)

    @property
    def learned(self) -> str:
        """What bears loss."""
        return "".join(piece for piece, learned in self.pieces if learned)


@dataclass(frozen=True)
class SourceLook:
    """A source of a run, as a look at its first rows found it.

    Attributes:
        source: that was looked at.
        share: of the training rows; None where it is held out.
        known: its entry in the catalogue, where it has one.
        opened: its rows (None for a stream) and the shape that they are read as; None where only the hub has
            it, which is not asked.
    """

    source: SourceConfig
    share: float | None
    known: Entry | None
    opened: tuple[int | None, str] | None


def look_at_sources(config: TrainingConfig, shapes: tuple[str, ...]) -> list[SourceLook]:
    """Returns each source of a run, training data first.

    Raises:
        LabError: when a source on this machine cannot be used.
    """
    held_out: list[float | None] = [None] * len(config.eval_datasets)
    sources = [*config.datasets, *config.eval_datasets]
    both = zip(sources, [*shares(config.datasets), *held_out], strict=True)
    return [look_at(source, share, shapes) for source, share in both]


def look_at(source: SourceConfig, share: float | None, shapes: tuple[str, ...]) -> SourceLook:
    """Returns a look at a source's first rows.

    Raises:
        LabError: when it is on this machine and cannot be used.
    """
    opened = None
    if local_files(source.name, source.split):
        rows = open_source(source, shapes)
        rows.look()
        opened = (None if rows.is_stream else len(rows.rows), rows.mapping.shape)
    return SourceLook(source, share, entry(source.name, source.subset), opened)


def overlaps(config: TrainingConfig, shapes: tuple[str, ...]) -> list[Overlap]:
    """Returns each validation source of which rows, or 13 words in a row of some, are trained on as well."""
    if not config.eval_datasets:
        return []
    trained = {row for source in config.datasets for row in _hashes(source, shapes)}
    result = []
    phrases = _phrases(config)
    for number, source in enumerate(config.eval_datasets):
        held_out = list(_hashes(source, shapes))
        shared = sum(row in trained for row in held_out)
        contaminated = phrases.get(number)
        if shared or contaminated:
            result.append(Overlap(source, shared, len(held_out), contaminated))
    return result


def _phrases(config: TrainingConfig) -> dict[int, int]:
    """Returns how many rows of each validation source share 13 words in a row with training data, by its
    number; empty where that would take long. What is not on this machine is left out.
    """
    try:
        train = [source for source in config.datasets if local_files(source.name, source.split)]
        held_out = {
            number: source
            for number, source in enumerate(config.eval_datasets)
            if local_files(source.name, source.split)
        }
        used = (*train, *held_out.values())
        files = [file for source in used for file in local_files(source.name, source.split)]
        if not train or not held_out or sum(file.stat().st_size for file in files) > SEARCHED:
            return {}
        found = overlap(train, tuple(held_out.values()))
    except (LabError, OSError):  # told by the table of the sources
        return {}
    return {number: one.touched for number, one in zip(held_out, found, strict=True)}


def first_row(config: TrainingConfig, shapes: tuple[str, ...]) -> RowPreview | None:
    """Returns the first usable row, rendered; None where tokenizer or data are not here, or no row is usable.

    Args:
        config: of the run.
        shapes: that its method learns from.
    """
    logging.set_verbosity_error()
    source = config.datasets[0]
    name = tokenizer_of(config)
    if not name or not local_files(source.name, source.split):
        return None
    try:
        tokenizer = load_tokenizer(name)
        ends = ensure_chat_template(tokenizer)
        row = next((row for _, row in SourceRows.of(source, shapes)), None)
        preview = RowPreview(sample_pieces(row, tokenizer) if row else [])
    except (LabError, InvalidRow, OSError):  # told by the table of the sources
        return None
    if row is None or not preview.pieces:
        return None
    if "text" in row or isinstance(config, PretrainConfig) or not preview.learned:
        return preview
    marks = [str(tokenizer.decode([end])) for end in (ends if isinstance(ends, list) else [ends])]
    return RowPreview(preview.pieces, any(mark and mark in preview.learned for mark in marks))


def _hashes(source: SourceConfig, shapes: tuple[str, ...]) -> Iterator[bytes]:
    if not local_files(source.name, source.split):
        return
    try:
        for _, row in islice(SourceRows.of(source, shapes), COMPARED):
            text = json.dumps(row, sort_keys=True, default=str)
            yield hashlib.blake2b(text.encode(), digest_size=16).digest()
    except (LabError, OSError):  # told by the table of the sources
        return


def tokenizer_of(config: TrainingConfig) -> str:
    """Returns the folder or file of the tokenizer that a run will read with;
    "" where it is not on this machine.
    """
    try:
        if isinstance(config, PretrainConfig) and config.init_from is None:
            shape = config.model if isinstance(config.model, ModelConfig) else load_config(str(config.model))
            name = shape.tokenizer_name if isinstance(shape, ModelConfig) else ""
            return name if name == "byte" or Path(name).exists() else ""
        where = find_model(str(getattr(config, config.STARTS_FROM)), tokenizer=True)
    except LabError:
        return ""
    return where if Path(where).exists() else ""
