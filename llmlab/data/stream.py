"""Text as an endless or a single stream of packed rows: sources are mixed, tokenised and packed in windows.

Stored and streamed corpora go through the same steps; memory is bounded by the window. Every row comes with
the place behind it (`stream_position`): a few hundred bytes that are part of a checkpoint.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from llmlab.data.mixture import sources_at
from llmlab.data.packing import POSITION, documents_table, pack, table_rows
from llmlab.data.pipeline import SourceRows
from llmlab.data.schemas import InvalidRow, Row
from llmlab.data.sources import GOES_ON, damaged
from llmlab.data.stream_position import LanePositions, SourcePosition, StreamPosition, WindowPosition
from llmlab.data.text import encode_texts
from llmlab.errors import LabError

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

CHUNK = 1024  # positions of the mixture drawn at once
HEAD = 5000  # rows of a stream that are looked through for held-out ones
BATCH = 100  # rows read at once; a resumed stream reads at most so many again


@dataclass(frozen=True, slots=True)
class Document:
    """What is tokenised: a text, or a canonical row of another shape.

    Attributes:
        row: canonical.
        number: of the row in its source.
        source: where it comes from.
        counted: whether it is taken from there for the first time.
        goes_on: whether the next row of a text file is the same document: no end of text follows then.
    """

    row: Row
    number: int
    source: SourceRows
    counted: bool = True
    goes_on: bool = False

    def drop(self, invalid: InvalidRow) -> None:
        """Leaves it out: it cannot be tokenised.

        Raises:
            LabError: when it is malformed and its source's `bad_rows` says to stop there.
        """
        self.source.drop(self.number, invalid, count=self.counted)

    @property
    def characters(self) -> int:
        """Its size."""
        if "text" in self.row:
            return len(self.row["text"])
        turns = self.row.get("messages") or self.row["prompt"]
        return sum(len(turn["content"]) for turn in turns) + len(self.row.get("completion", ""))


Window = list[Document]


class Reader:
    """The documents of one source in order, from any place on;
    `passes` counts how often it ran out and began again.

    Args:
        source: its rows.
        head_only: whether it ends after `HEAD` rows.
    """

    def __init__(self, source: SourceRows, *, head_only: bool = False):
        opened = source.opened
        self.source, self.head_only = source, head_only
        self.rows: Any = opened.rows if opened.is_stream else opened.rows.to_iterable_dataset()
        self.passes = 0
        self._begin()

    def _begin(self) -> None:
        self._number = 0  # rows read in this pass
        self._mark: dict[str, Any] = {"number": 0, "library": None}
        self._batch: deque[Row] = deque()
        self._batches: Iterator[dict[str, list[Any]]] | None = None

    def restart(self) -> None:
        """Goes to the beginning; rows are counted no more."""
        self.passes = 0
        self.source.stop_counting()
        self._begin()

    def next(self) -> Document:
        """Returns the next document.

        Raises:
            StopIteration: when the source is exhausted; the next call begins again.
        """
        while (raw := self._raw()) is not None:
            number = self._number - 1
            if (row := self.source.take(number, raw)) is not None:
                return Document(row, number, self.source, self.source.counting, raw.get(GOES_ON) is True)
        self.passes += 1
        self.source.stop_counting()
        self._begin()
        raise StopIteration

    def position(self) -> SourcePosition:
        """Returns the place."""
        return SourcePosition(self.passes, self._number, self._mark)

    def restore(self, place: SourcePosition) -> None:
        """Goes to a place; at most a batch of rows is read again."""
        self._begin()
        self.passes, self._mark, self._number = place.passes, place.mark, place.mark["number"]
        while self._number < place.number and self._raw() is not None:
            pass

    def _raw(self) -> Row | None:
        """Returns the next row as the source has it; None at its end."""
        if self._batches is None:
            self.rows.load_state_dict(self._mark["library"])
            self._batches = self.rows.iter(batch_size=BATCH)  # unlike iter(), whole in every loader process
        assert self._batches is not None
        try:
            if not self._batch:
                self._mark = {
                    "number": self._number,
                    "library": self.rows.state_dict() if self._number else None,
                }
                columns = next(self._batches)
                self._batch.extend(
                    dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
                )
        except StopIteration:
            return None
        except LabError:
            raise
        except Exception as error:  # the readers of datasets raise many kinds
            raise damaged(self.source.opened.config, error) from None
        if self.head_only and self._number >= HEAD:
            return None
        self._number += 1
        return self._batch.popleft()


@dataclass
class _IdlePasses:
    """Passes over an endless stream that gave no row although windows were packed.

    Attributes:
        limit: how many in a row mean that none will come: after one for each lane, every lane has seen all
            windows, or sees the same ones forever.
        windows: packed in this pass.
        rows: given before this pass.
        passes: without a row.
    """

    limit: int
    windows: int = 0
    rows: int = -1
    passes: int = 0

    def too_many(self, rows: int) -> bool:
        """Returns whether to give up, at the beginning of a pass."""
        if self.windows:
            self.passes = self.passes + 1 if rows == self.rows else 0
        self.windows, self.rows = 0, rows
        return self.passes >= self.limit


class PackedStream(IterableDataset[dict[str, Any]]):
    """Packed rows of a mixture of sources, each with the place behind it.

    Args:
        readers: makes the readers of the sources.
        shares: of each source, adding up to 1.
        encode: from documents to a table of token lists.
        length: tokens of a row.
        packing: "end_to_end" or "best_fit".
        seed: of the mixture.
        stop: "first_exhausted" or "all_exhausted".
        endless: begins again when the mixture is over.
    """

    def __init__(
        self,
        readers: Callable[[], list[Reader]],
        shares: list[float],
        encode: Callable[[Window], pa.Table],
        length: int,
        *,
        packing: str,
        seed: int,
        stop: str,
        endless: bool,
    ):
        super().__init__()
        self.make_readers, self.shares, self.encode, self.length = readers, shares, encode, length
        self.packing, self.seed, self.stop, self.endless = packing, seed, stop, endless
        self.window = min(max(2_000_000, 1024 * length), 32_000_000)  # characters
        self.readers: list[Reader] = []  # of the newest iteration
        self._start = LanePositions.at_start(1)

    def state_dict(self) -> dict[str, Any]:
        """Returns where the next iteration begins."""
        return self._start.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lets the next iteration begin where `LanePositions.state_dict` says."""
        self._start = LanePositions.from_state_dict(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields rows, the place behind each under `POSITION`; of several loader processes each packs the
        windows of one lane.

        Raises:
            LabError: when a pass over an endless stream gave nothing.
        """
        worker = get_worker_info()
        number, lanes = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:  # a copy of this process without its threads, which the tokenizer would wait for
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        start = self._start.in_lanes(lanes)
        place = start.lanes[(start.turn + number) % lanes]  # the loader asks its first process first
        rows, skip = place.rows, place.inside
        idle = _IdlePasses(limit=lanes)
        for window, documents in self.windows(place.windows):
            if window.position == 0 and idle.too_many(rows):
                break
            if window.number % lanes != place.lane:
                continue
            idle.windows += 1
            table = pack(self.encode(documents), self.length, self.packing)
            for inside, row in enumerate(table_rows(table), 1):
                if skip:
                    skip -= 1
                    continue
                rows += 1
                yield {**row, POSITION: StreamPosition(rows, inside, window, place.lane)}
        if self.endless:
            why = "; ".join(self.notes()) or "its sources are empty"
            raise LabError(
                f"the stream holds nothing to train on: {why}",
                where="datasets",
                remedy="raise `max_length` or look at the rows: `llmlab data inspect`",
            )

    def notes(self) -> list[str]:
        """Returns what was left out of the stream so far, one line a reason;
        counted in the process that reads it.
        """
        counts = Counter[str]()
        for reader in self.readers:
            counts.update(reader.source.counter.left_out)
        return [f"left out {count:,} rows of the stream: {reason}" for reason, count in counts.items()]

    def tables(self) -> Iterator[tuple[pa.Table, int]]:
        """Yields the packed rows of one window after the other and the bytes of its texts; the next window is
        tokenised beside it.
        """

        def encode(documents: Window) -> tuple[pa.Table, int]:
            size = sum(len(document.row.get("text", "").encode()) for document in documents)
            return self.encode(documents), size

        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for _, documents in self.windows(None):
                ready, ahead = ahead, pool.submit(encode, documents)
                if ready:
                    table, size = ready.result()
                    yield pack(table, self.length, self.packing), size
            if ahead:
                table, size = ahead.result()
                yield pack(table, self.length, self.packing), size

    def windows(self, place: WindowPosition | None) -> Iterator[tuple[WindowPosition, Window]]:
        """Yields (the place before it, documents) of each window, from a place on."""
        self.readers = self.make_readers()
        position, done, number = 0, set[int](), 0
        if place:
            position, done, number = place.position, set(place.done), place.number
            for reader, at in zip(self.readers, place.readers, strict=True):
                reader.restore(at)
        while True:
            over, first = False, position == 0
            while not over:
                before = WindowPosition(
                    position, tuple(sorted(done)), tuple(reader.position() for reader in self.readers), number
                )
                documents, position, over = self._fill(position, done)
                if documents:
                    yield before, documents
                    number += 1
                elif first:
                    return  # there is nothing at all
                first = False
            if not self.endless:
                return
            position, done = 0, set()
            for reader in self.readers:
                reader.restart()

    def _fill(self, position: int, done: set[int]) -> tuple[Window, int, bool]:
        """Returns the documents of a window, the position behind it, and whether the mixture is over."""
        documents: Window = []
        size = 0
        wanted = {index for index, share in enumerate(self.shares) if share}
        while True:
            for index in sources_at(position, CHUNK, self.shares, self.seed).tolist():
                if size >= self.window:
                    return documents, position, False
                try:
                    document = self.readers[index].next()
                except StopIteration:
                    done.add(index)
                    if self.stop == "first_exhausted" or done >= wanted:
                        return documents, position, True
                    try:
                        document = self.readers[index].next()
                    except StopIteration:  # it holds nothing
                        return documents, position, True
                position += 1
                documents.append(document)
                size += document.characters


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Window], pa.Table]:
    """Returns the function that turns texts into a table of tokens,
    each document closed by the end-of-text token.
    """
    end = tokenizer.eos_token_id

    def encode(documents: Window) -> pa.Table:
        ids = encode_texts(tokenizer, [document.row["text"] for document in documents])
        closed = [
            each if document.goes_on else np.append(each, np.int32(end))
            for each, document in zip(ids, documents, strict=True)
        ]
        return documents_table({"input_ids": closed})

    return encode
