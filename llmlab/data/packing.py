"""Packing: documents side by side in rows of one length, position ids restarting at each document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from llmlab.data.render import IGNORED


def pack_stream(documents: Iterable[list[int]], length: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields rows of exactly `length` tokens cut from the documents laid end to end; what is left over is dropped.

    Each row has `input_ids` and `position_ids`, both (length,) int32. Positions restart at 0 where a document begins
    and where a row begins. Holds at most one row and one document in memory.
    """
    ids = np.empty(length, dtype=np.int32)
    positions = np.empty(length, dtype=np.int32)
    filled = 0
    for document in documents:
        tokens = np.asarray(document, dtype=np.int32)
        while len(tokens):
            part = tokens[: length - filled]
            ids[filled : filled + len(part)] = part
            positions[filled : filled + len(part)] = np.arange(len(part))
            filled += len(part)
            tokens = tokens[len(part) :]
            if filled == length:
                yield {"input_ids": ids.copy(), "position_ids": positions.copy()}
                filled = 0


class PackedCollator:
    """Makes a batch of packed rows: `input_ids`, `labels` and `position_ids`, each (B, T).

    Rows come with `position_ids`, or with `seq_lengths` of their documents, or as one document each. Shorter rows are
    filled with padding that is a document of its own. The first token of a document is never a label: it would be
    predicted from another document.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch of `rows`."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), longest)
        ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        for index, row in enumerate(rows):
            size = len(row["input_ids"])
            ids[index, :size] = row["input_ids"]
            labels[index, :size] = row["labels"] if "labels" in row else row["input_ids"]
            positions[index, :size] = self._positions(row, size)
            positions[index, size:] = np.arange(longest - size)
        labels[positions == 0] = IGNORED
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
        }

    @staticmethod
    def _positions(row: dict[str, Any], size: int) -> np.ndarray:
        if "position_ids" in row:
            return np.asarray(row["position_ids"])
        return np.concatenate([np.arange(length) for length in row.get("seq_lengths") or [size]])
