"""Text as an endless or a single stream of packed rows: sources are mixed, tokenised and packed in windows.

Stored and streamed corpora go through the same steps; memory is bounded by the window. Every row comes with
the place behind it (`stream_position`): a few hundred bytes that are part of a checkpoint.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from llmlab.data.mixture import Mix, sources_at
from llmlab.data.packing import POSITION, documents_table, pack, table_rows
from llmlab.data.reader import Reader, Window
from llmlab.data.stream_position import LanePositions, StreamPosition, WindowPosition
from llmlab.data.text import encode_texts
from llmlab.errors import LabError

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

CHUNK = 1024  # positions of the mixture drawn at once
MIN_WINDOW, MAX_WINDOW = 2_000_000, 32_000_000  # characters
ROWS_OF_A_WINDOW = 1024  # about; within these bounds


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


class StreamFault(Exception):
    """A `LabError` in a loader process: torch hands on the text of an exception, behind a traceback."""

    @classmethod
    def of(cls, error: LabError) -> StreamFault:
        """Returns the fault that stands for an error."""
        return cls(json.dumps([error.what, error.where, error.remedy, error.exit_code]))

    def error(self) -> LabError:
        """Returns the error that it stands for."""
        what, where, remedy, exit_code = json.loads(str(self).strip().rsplit("\n", 1)[-1].partition(": ")[2])
        return LabError(what, where=where, remedy=remedy, exit_code=exit_code)


class PackedStream(IterableDataset[dict[str, Any]]):
    """Packed rows of a mixture of sources, each with the place behind it.

    Args:
        readers: makes the readers of the sources.
        mix: how they are mixed.
        encode: from documents to a table of token lists.
        length: tokens of a row.
        packing: "end_to_end" or "best_fit".
    """

    def __init__(
        self,
        readers: Callable[[], list[Reader]],
        mix: Mix,
        encode: Callable[[Window], pa.Table],
        length: int,
        *,
        packing: str,
    ):
        super().__init__()
        self.make_readers, self.mix, self.encode = readers, mix, encode
        self.length, self.packing = length, packing
        self.window = min(max(MIN_WINDOW, ROWS_OF_A_WINDOW * length), MAX_WINDOW)  # characters
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
        if worker is None:
            yield from self._rows(0, 1)
            return
        # a copy of this process without its threads, which the tokenizer would wait for
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            yield from self._rows(worker.id, worker.num_workers)
        except LabError as error:
            raise StreamFault.of(error) from None

    def _rows(self, number: int, lanes: int) -> Iterator[dict[str, Any]]:
        """Yields the rows of a lane: of the process `number`, where the loader asks number 0 first."""
        start = self._start.in_lanes(lanes)
        place = start.lanes[(start.turn + number) % lanes]
        rows, skip = place.rows, place.inside
        before = Counter(place.left_out)  # of the windows before; resumed inside one, of that one as well
        resuming = place.inside > 0
        idle = _IdlePasses(limit=lanes)
        counted = Counter[str]()  # by the readers, before the window at hand was read
        for window, documents in self.windows(place.windows):
            if window.position == 0 and idle.too_many(rows):
                break
            if window.number % lanes != place.lane:
                counted = self._left_out()
                continue
            idle.windows += 1
            table = pack(self.encode(documents), self.length, self.packing)
            left_out = before if resuming else before + (self._left_out() - counted)
            resuming = False
            for inside, row in enumerate(table_rows(table), 1):
                if skip:
                    skip -= 1
                    continue
                rows += 1
                yield {**row, POSITION: StreamPosition(rows, inside, window, place.lane, dict(left_out))}
            before, counted = left_out, self._left_out()
        if self.mix.endless:
            reasons = [f"left out {count:,} rows: {reason}" for reason, count in self._left_out().items()]
            raise LabError(
                f"the stream has nothing to train on: {'; '.join(reasons) or 'its sources are empty'}",
                where="datasets",
                remedy="raise `max_length` or look at the rows: `llmlab data inspect`",
            )

    def _left_out(self) -> Counter[str]:
        counts = Counter[str]()
        for reader in self.readers:
            counts.update(reader.source.counter.left_out)
        return counts

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
        position, done, number, rounds = 0, set[int](), 0, 0
        if place:
            position, done, number, rounds = place.position, set(place.done), place.number, place.rounds
            for reader, at in zip(self.readers, place.readers, strict=True):
                if rounds:
                    reader.source.stop_counting()
                reader.restore(at)
        while True:
            over, first = False, position == 0
            while not over:
                places = tuple(reader.position() for reader in self.readers)
                before = WindowPosition(position, tuple(sorted(done)), places, number, rounds)
                documents, position, over = self._fill(position, done)
                if documents:
                    yield before, documents
                    number += 1
                elif first:
                    return  # there is nothing at all
                first = False
            if not self.mix.endless:
                return
            position, done, rounds = 0, set(), rounds + 1
            for reader in self.readers:
                reader.restart()

    def _fill(self, position: int, done: set[int]) -> tuple[Window, int, bool]:
        """Returns the documents of a window, the position behind it, and whether the mixture is over."""
        documents: Window = []
        size = 0
        wanted = {index for index, share in enumerate(self.mix.shares) if share}
        while True:
            for index in sources_at(position, CHUNK, self.mix.shares, self.mix.seed).tolist():
                if size >= self.window:
                    return documents, position, False
                try:
                    document = self.readers[index].next()
                except StopIteration:
                    done.add(index)
                    if self.mix.stop == "first_exhausted" or done >= wanted:
                        return documents, position, True
                    try:
                        document = self.readers[index].next()
                    except StopIteration:  # it holds nothing
                        return documents, position, True
                position += 1
                documents.append(document)
                size += document.characters


def encoder(tokenizer: PreTrainedTokenizerBase, *, begin: int | None = None) -> Callable[[Window], pa.Table]:
    """Returns the function that turns texts into a table of tokens, each document closed by the end-of-text
    token.

    Args:
        tokenizer: of the model.
        begin: the token that documents begin with; None for none.
    """
    end = tokenizer.eos_token_id

    def encode(documents: Window) -> pa.Table:
        ids = encode_texts(tokenizer, [document.row["text"] for document in documents])
        closed = [
            np.concatenate(
                [
                    np.array([] if begin is None or document.continues else [begin], np.int32),
                    each,
                    np.array([] if document.goes_on else [end], np.int32),
                ]
            )
            for each, document in zip(ids, documents, strict=True)
        ]
        return documents_table({"input_ids": closed})

    return encode
