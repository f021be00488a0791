"""Text as an endless or a single stream of packed rows: sources are mixed, tokenised and packed in windows.

Stored and streamed corpora go through the same steps; memory is bounded by the window. The state of a stream
is its place in every source at the start of the window and the number of rows given since: a few hundred
bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from llmlab.data.canonical import OpenSource, RowCounter
from llmlab.data.mixture import is_held_out, sources_at
from llmlab.data.packing import documents_table, pack, table_rows
from llmlab.data.sources import GOES_ON, damaged
from llmlab.data.text import encode_texts
from llmlab.errors import LabError

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

CHUNK = 1024  # positions of the mixture drawn at once
HEAD = 5000  # rows of a stream that are looked through for held-out ones
BATCH = 100  # rows read at once; a resumed stream reads at most so many again
SNAPSHOTS = 64  # states kept of a stream, the newest ones
Window = list[Any]


def _repeated(opened: OpenSource) -> frozenset[int]:
    """Returns the numbers of the rows that repeat an earlier one: known before reading, so that a resumed run
    leaves them out as well.
    """
    seen: set[bytes] = set()
    again = []
    for number, row in opened.canonical(RowCounter()):
        content = hashlib.sha256(repr(row).encode()).digest()[:16]
        if content in seen:
            again.append(number)
        seen.add(content)
    return frozenset(again)


class Unfinished(str):
    """A piece of a text file whose document goes on in the next row: no end of text follows it."""


class Reader:
    """The documents of one source in order, from any place on;
    `passes` counts how often it ran out and began again.
    """

    def __init__(self, opened: OpenSource, fraction: float, *, held_out: bool):
        self.opened, self.fraction, self.held_out = opened, fraction, held_out
        stored = not opened.is_stream
        self.rows = opened.rows.to_iterable_dataset() if stored else opened.rows
        self.head_only = opened.config.streaming and held_out  # nobody reads a whole stream for validation
        self.counter = RowCounter()
        self.passes = 0
        self._again = _repeated(opened) if opened.config.duplicates == "drop" else frozenset()
        self._begin()

    def _begin(self) -> None:
        self._number = 0  # rows read in this pass
        self._mark: dict[str, Any] = {"number": 0, "library": None}
        self._given = 0  # documents given of the last row
        self._pending: deque[Any] = deque()
        self._batch: deque[Any] = deque()
        self._batches: Iterator[dict[str, list]] | None = None

    def next(self) -> Any:
        """Returns the next document: text, or a canonical row of another shape.

        Raises:
            StopIteration: when the source is exhausted; the next call begins again.
        """
        while not self._pending:
            if not self._read():
                self.passes += 1
                self._begin()
                raise StopIteration
        self._given += 1
        return self._pending.popleft()

    def state(self) -> dict[str, Any]:
        """Returns the place as JSON data."""
        inside = self._given if self._pending else None  # None: between two rows
        return {"passes": self.passes, "number": self._number, "inside": inside, "mark": self._mark}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a place."""
        self._begin()
        self.passes, self._mark, self._number = state["passes"], state["mark"], state["mark"]["number"]
        while self._number < state["number"] and self._read():
            pass
        self._given = state["inside"] or 0
        keep = list(self._pending)[self._given :] if state["inside"] is not None else []
        self._pending = deque(keep)

    def _read(self) -> bool:
        """Makes the next row's documents the pending ones; returns whether there was a row."""
        if self._batches is None:
            self.rows.load_state_dict(self._mark["library"])
            self._batches = self.rows.iter(batch_size=BATCH)  # unlike iter(), whole in every loader process
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
            return False
        except LabError:
            raise
        except Exception as error:  # the readers of the library raise many kinds
            raise damaged(self.opened.config, error) from None
        row, number = self._batch.popleft(), self._number
        if self.head_only and number >= HEAD:
            return False
        self._number += 1
        self._pending = deque(self._documents(number, row))
        self._given = 0
        return True

    def _documents(self, number: int, row: Any) -> list[Any]:
        if self.fraction:
            held = is_held_out(np.array([number]), self.fraction)[0]
            if bool(held) != self.held_out:
                return []
        if number in self._again:
            self.counter.add("the same as an earlier row", number)
            return []
        made = self.opened.read(number, row, self.counter)
        if made is None:
            return []
        if "text" not in made:
            return [made]
        return [Unfinished(made["text"]) if row.get(GOES_ON) is True else made["text"]]


class PackedStream(IterableDataset):
    """Packed rows of a mixture of sources.

    Args:
        readers: makes the readers of the sources, fresh ones at each call.
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
        self.snapshot_every = 0  # rows; 0 takes no snapshots
        self.snapshots: deque[dict[str, Any]] = deque(maxlen=SNAPSHOTS)
        self.start: dict[str, Any] | None = None
        self.counters: list[RowCounter] = []
        self.left_out: Counter[str] = Counter()  # rows that gave no tokens, by reason

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields rows; of several loader processes each takes every n-th window."""
        worker = get_worker_info()
        share, of = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:  # a copy of this process without its threads, which the tokenizer would wait for
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        state = self.start or {"rows": 0, "inside": 0, "windows": None}
        given, skip = state["rows"], state["inside"]
        for number, (place, documents) in enumerate(self.windows(state["windows"])):
            if number % of != share:
                continue
            inside = 0
            for row in table_rows(pack(self.encode(documents), self.length, self.packing)):
                if skip:
                    skip -= 1
                    inside += 1
                    continue
                if self.snapshot_every and given % self.snapshot_every == 0:
                    self.snapshots.append({"rows": given, "inside": inside, "windows": place})
                given += 1
                inside += 1
                yield row

    def notes(self) -> list[str]:
        """Returns what was left out of the stream so far, one line a reason;
        counted in the process that reads it.
        """
        counts = sum((Counter(counter.counts) for counter in self.counters), start=Counter()) + self.left_out
        return [f"left out {count:,} rows of the stream: {reason}" for reason, count in counts.items()]

    def tables(self) -> Iterator[pa.Table]:
        """Yields the packed rows of one window after the other; the next window is tokenised beside it."""
        windows = (documents for _, documents in self.windows(None))
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for documents in windows:
                ready, ahead = ahead, pool.submit(self.encode, documents)
                if ready:
                    yield pack(ready.result(), self.length, self.packing)
            if ahead:
                yield pack(ahead.result(), self.length, self.packing)

    def windows(self, state: dict[str, Any] | None) -> Iterator[tuple[dict[str, Any], Window]]:
        """Yields (the state before it, documents) of each window, from a state on."""
        while True:
            readers = self.make_readers()
            self.counters = [reader.counter for reader in readers]
            position, done = (state["position"], set(state["done"])) if state else (0, set())
            for reader, place in zip(readers, state["readers"] if state else [], strict=bool(state)):
                reader.restore(place)
            state, over, first = None, False, position == 0
            while not over:
                place = {
                    "position": position,
                    "done": sorted(done),
                    "readers": [reader.state() for reader in readers],
                }
                documents, position, over = self._fill(readers, position, done)
                if documents:
                    yield place, documents
                elif first:
                    return  # there is nothing at all
                first = False
            if not self.endless:
                return

    def _fill(self, readers: list[Reader], position: int, done: set[int]) -> tuple[Window, int, bool]:
        """Returns the documents of a window, the position behind it, and whether the mixture is over."""
        documents, size = [], 0
        wanted = {index for index, share in enumerate(self.shares) if share}
        while True:
            for index in sources_at(position, CHUNK, self.shares, self.seed).tolist():
                if size >= self.window:
                    return documents, position, False
                try:
                    document = readers[index].next()
                except StopIteration:
                    done.add(index)
                    if self.stop == "first_exhausted" or done >= wanted:
                        return documents, position, True
                    try:
                        document = readers[index].next()
                    except StopIteration:  # it holds nothing
                        return documents, position, True
                position += 1
                documents.append(document)
                size += len(document) if isinstance(document, str) else _characters(document)


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Window], pa.Table]:
    """Returns the function that turns texts into a table of tokens,
    each document closed by the end-of-text token.
    """
    end = tokenizer.eos_token_id

    def encode(texts: Window) -> pa.Table:
        ids = encode_texts(tokenizer, texts)
        closed = [
            each if isinstance(text, Unfinished) else np.append(each, np.int32(end))
            for each, text in zip(ids, texts, strict=True)
        ]
        return documents_table({"input_ids": closed})

    return encode


def _characters(row: dict[str, Any]) -> int:
    turns = row.get("messages") or row["prompt"]
    return sum(len(turn["content"]) for turn in turns) + len(row.get("completion", ""))
