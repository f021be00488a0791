"""A source that is open for reading: its raw rows, and how each becomes canonical."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from llmlab.config import SourceConfig
from llmlab.data.catalogue import entry, entry_like, mapping_for
from llmlab.data.collection import COLUMNS as COLLECTED_COLUMNS
from llmlab.data.collection import SOURCE as COLLECTION
from llmlab.data.local import row_place
from llmlab.data.mapping import RowMapping
from llmlab.data.parsers import TREE_COLUMNS, conversations_of_tree
from llmlab.data.recognition import ByHand, choose_mapping
from llmlab.data.schemas import CONVERSATIONS, InvalidRow, Row
from llmlab.data.sources import PIECE, load_rows
from llmlab.errors import LabError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

LOOKED_AT_FIRST = 1000  # rows that are checked before any work is done on a source


@dataclass
class OpenSource:
    """A source with its mapping.

    Attributes:
        config: what was asked for.
        rows: its raw rows, stored or streamed.
        mapping: from a raw row to the canonical one.
    """

    config: SourceConfig
    rows: Dataset | IterableDataset
    mapping: RowMapping

    @property
    def is_stream(self) -> bool:
        """Whether the rows come as they are read, their number unknown."""
        return not hasattr(self.rows, "__len__")

    def malformed(self, number: int, reason: str) -> LabError:
        """Returns the message about a malformed row."""
        return LabError(
            reason,
            where=row_place(self.config, number),
            remedy='fix it, or set the source\'s `bad_rows` to "drop"',
        )

    def refuse_malformed(self, number: int, invalid: InvalidRow) -> None:
        """Ends the run at a malformed row, where the source's `bad_rows` says so.

        Raises:
            LabError: with the place of the row.
        """
        if invalid.malformed and self.config.bad_rows == "stop":
            raise self.malformed(number, invalid.reason) from None

    def look(self, count: int = LOOKED_AT_FIRST) -> None:
        """Reads the first rows, so that what is wrong everywhere is told before any work is done.

        Raises:
            LabError: when one is malformed.
        """
        for number, row in enumerate(islice(each_row(self.rows), count)):
            try:
                self.mapping(row)
            except InvalidRow as invalid:
                self.refuse_malformed(number, invalid)


def open_source(
    source: SourceConfig, needed: tuple[str, ...], *, streaming: bool | None = None, piece: int = PIECE
) -> OpenSource:
    """Returns the source with its rows read as one of the needed shapes.

    Raises:
        LabError: when it cannot be read, its columns fit no needed shape, or `like` names no known dataset.
    """
    dataset = entry(source.name, source.subset)
    if source.like:
        dataset = entry_like(source.like)
        if dataset is None:
            raise LabError(
                f"`like` {source.like!r} is not in the catalogue",
                where=source.name,
                remedy="`llmlab data catalog`",
            )
        set_too = {"format": source.format != "auto", "columns": source.columns, "prompt": source.prompt}
        if beside := next((option for option, is_set in set_too.items() if is_set), ""):
            raise LabError(
                f"`like` and `{beside}` both set how rows are read",
                where=source.name,
                remedy="give one of them",
            )
    rows = load_rows(source, streaming=streaming, piece=piece)
    if (dataset and dataset.id == "OpenAssistant/oasst1") or set(rows.column_names or ()) >= TREE_COLUMNS:
        rows = _untangled(source, rows)
        dataset = None
    if dataset is None and set(rows.column_names or ()) >= set(COLLECTED_COLUMNS):
        dataset = entry(COLLECTION)
    sample = _first(source, rows)
    columns = list(rows.column_names or sample)
    label = (source.columns or {}).get("label", "label")
    names = getattr((rows.features or {}).get(label), "names", None)
    by_hand = ByHand(
        source.format,
        source.columns or {},
        source.prompt or "",
        tuple(source.labels or (() if dataset else names or ())),
    )
    mapping = choose_mapping(
        columns, sample, needed, source.name, by_hand=by_hand, usual=mapping_for(dataset, needed)
    )
    if source.labels and mapping.shape != "classification":
        raise LabError(
            f"`labels` names the labels of a classification; the rows are read as {mapping.shape}",
            where=source.name,
            remedy='leave it out, or set `format` to "classification"',
        )
    if mapping.shape in CONVERSATIONS and not {"prompt", "prompt_answer"} & set(needed):
        marks = [name for name in ("label", "labels") if isinstance(sample.get(name), bool)]
        if marks:
            raise LabError(
                f"holds answers marked good or bad (`{marks[0]}` is true or false: KTO rows), and all of"
                " them would be learned as good",
                where=source.name,
                remedy=f"keep the rows with a true `{marks[0]}` in a file of their own, without that column",
            )
    return OpenSource(source, rows, mapping)


def each_row(rows: Any, batch_size: int = 100) -> Iterator[Row]:
    """Yields all rows, in every process alike:
    plain iteration over a stream would share them among loader processes.
    """
    for columns in rows.iter(batch_size=batch_size):
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _first(source: SourceConfig, rows: Any) -> Row:
    try:
        return next(each_row(rows, 1))
    except StopIteration:
        raise LabError(
            "holds no rows", where=source.name, remedy="name a file or folder that contains text"
        ) from None
    except LabError:
        raise
    except Exception as error:  # a stream meets a damaged file only when it is read
        from llmlab.data.sources import damaged

        raise damaged(source, error) from None


def _untangled(source: SourceConfig, rows: Any) -> Dataset:
    from datasets import Dataset

    if source.streaming:
        raise LabError(
            "is a tree of messages, which cannot be streamed",
            where=source.name,
            remedy="set `streaming` to false",
        )
    try:
        return Dataset.from_list(list(conversations_of_tree(rows)))
    except InvalidRow as fault:
        raise LabError(fault.reason, where=source.name) from None
