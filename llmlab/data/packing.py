"""Packing: documents side by side in rows of one length; positions and attention restart at each document.

Documents travel as Arrow tables of list columns (`input_ids`, and `labels` where not every token is learned);
packed rows have `seq_lengths` beside them, the lengths of the documents in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.data.rendering import IGNORE_INDEX

if TYPE_CHECKING:
    import pyarrow as pa

POSITION = "stream_position"  # of a streamed row and of a batch: the place behind it, which no model reads


def documents_table(columns: dict[str, list[np.ndarray]]) -> pa.Table:
    """Returns documents, one array of tokens each, as a table of int32 list columns."""
    import pyarrow as pa

    table_columns = {}
    for name, arrays in columns.items():
        values = np.concatenate(arrays).astype(np.int32, copy=False) if arrays else np.empty(0, np.int32)
        table_columns[name] = _lists(values, np.array([len(array) for array in arrays], np.int64))
    return pa.table(table_columns)


def pack(table: pa.Table, length: int, how: str) -> pa.Table:
    """Returns rows of at most `length` tokens, with the column `seq_lengths`.

    Args:
        table: documents, from `documents_table`; documents longer than a row are cut into pieces of its
            length.
        length: tokens of a row.
        how: "end_to_end" lays documents one after the other, cutting at the end of a row: only the last row
            is short; "best_fit" keeps every piece whole, each in the fullest row that still has room for it
            (best-fit decreasing, Ding et al. 2024, "Fewer Truncations Improve Language Modeling").
    """
    import pyarrow as pa

    names = table.column_names
    values = {name: _flat(table.column(name)) for name in names}
    sizes = np.diff(_offsets(table.column(names[0])))
    sizes = sizes[sizes > 0]
    if not len(sizes):
        nothing = _lists(np.empty(0, np.int32), np.empty(0, np.int64))
        return pa.table(dict.fromkeys((*names, "seq_lengths"), nothing))
    if how == "end_to_end":
        total = int(sizes.sum())
        cuts = np.union1d(np.cumsum(sizes), np.append(np.arange(length, total, length), total)).astype(
            np.int64
        )
        pieces = np.diff(cuts, prepend=0)
        rows = (cuts - 1) // length
        tokens = np.full(-(-total // length), length, np.int64)
        if total % length:
            tokens[-1] = total % length
        columns = {name: _lists(values[name], tokens) for name in names}
        return pa.table(
            {
                **columns,
                "seq_lengths": _lists(pieces.astype(np.int32), np.bincount(rows, minlength=len(tokens))),
            }
        )
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    whole, rest = np.divmod(sizes, length)
    counts = whole + (rest > 0)
    pieces = np.full(int(counts.sum()), length, np.int64)
    pieces[np.cumsum(counts)[rest > 0] - 1] = rest[rest > 0]
    pieces_table = Dataset(pa.table({name: _lists(values[name], pieces) for name in names}))
    packed = pack_dataset(pieces_table, length, "bfd").with_format("arrow")[:]
    lists = pa.list_(pa.int32())
    return pa.table({name: packed.column(name).cast(lists) for name in (*names, "seq_lengths")})


def table_rows(table: pa.Table) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of a table of list columns as arrays."""
    columns = {name: (_flat(table.column(name)), _offsets(table.column(name))) for name in table.column_names}
    for row in range(table.num_rows):
        yield {name: values[offsets[row] : offsets[row + 1]] for name, (values, offsets) in columns.items()}


def row_lengths(rows: Any) -> np.ndarray:
    """Returns the number of tokens in each row of a dataset or table of packed rows, (rows,)."""
    table = rows.with_format("arrow")[:] if hasattr(rows, "with_format") else rows
    return np.diff(_offsets(table.column("input_ids")))


def padding_share(lengths: np.ndarray, length: int) -> float:
    """Returns the share of padding when rows of these lengths are filled up to `length`."""
    return 1 - float(lengths.sum()) / max(1, len(lengths) * length)


class PackedCollator:
    """Makes a batch of packed rows: `input_ids`, `labels`, `position_ids`, each (B, T); with `bounds` also
    `document_bounds`.

    Rows come with `seq_lengths` of their documents, or as one document each. Shorter rows are filled with
    padding that is a document of its own. The first token of a document is never a label: it would be
    predicted from another document. Of a stream, the place behind the last row goes with the batch.
    """

    def __init__(self, pad_token_id: int, *, bounds: bool = False):
        self.pad_token_id, self.bounds = pad_token_id, bounds

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch of `rows`."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), longest)
        ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        for index, row in enumerate(rows):
            size = len(row["input_ids"])
            ids[index, :size] = row["input_ids"]
            labels[index, :size] = row["labels"] if "labels" in row else row["input_ids"]
            lengths = row.get("seq_lengths", [size])
            positions[index, :size] = np.concatenate([np.arange(length) for length in lengths])
            positions[index, size:] = np.arange(longest - size)
        labels[positions == 0] = IGNORE_INDEX
        position_ids = torch.from_numpy(positions)
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "position_ids": position_ids,
            **(document_bounds(position_ids) if self.bounds else {}),
            **({POSITION: rows[-1][POSITION]} if POSITION in rows[-1] else {}),
        }


def takes_bounds(model: Any) -> bool:
    """Returns whether a model's attention kernel has to be told where documents begin: flash attention, which
    has no mask.

    From positions alone transformers recognises packed rows in batches of one row only.
    """
    return str(model.config._attn_implementation).startswith("flash")


def document_bounds(position_ids: Any) -> dict[str, Any]:
    """Returns where the documents of packed rows (B, T) begin and end, as flash attention takes it.

    `cu_seq_lens_q` and `cu_seq_lens_k` (documents + 1,) int32 are places in the rows laid end to end;
    `max_length_q` and `max_length_k` are the tokens of the longest document.
    """
    import torch

    flat = position_ids.flatten()
    starts = (flat == 0).nonzero().flatten().to(torch.int32)
    places = torch.cat([starts, starts.new_tensor([flat.numel()])])
    longest = int(places.diff().max())
    return {
        "cu_seq_lens_q": places,
        "cu_seq_lens_k": places,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _lists(values: np.ndarray, lengths: np.ndarray) -> pa.Array:
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32()))


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([np.asarray(chunk.flatten()) for chunk in column.chunks] or [np.empty(0, np.int32)])


def _offsets(column: pa.ChunkedArray) -> np.ndarray:
    sizes = [np.asarray(chunk.value_lengths()) for chunk in column.chunks]
    return np.concatenate([[0], np.cumsum(np.concatenate(sizes or [np.empty(0, np.int64)]))]).astype(np.int64)
