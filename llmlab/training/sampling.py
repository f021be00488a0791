"""What a run draws and in which order: by the seed, the step and the row alone.

How an answer is drawn by such numbers: `llmlab.models.seeded_draws`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmlab.models.seeded_draws import SeededDraw, SeededDraws, seeds_of_rows

__all__ = [
    "ANSWERS",
    "HELD_OUT",
    "ROW",
    "SeededDraw",
    "SeededDraws",
    "seeds_of_rows",
    "spread_over_updates",
    "with_row_numbers",
]

HELD_OUT, ANSWERS, ORDER = range(3)  # what numbers are for
ROW = "held_out_row"  # column: the number of a held-out row, by which its answer is drawn


def with_row_numbers(data: Any) -> Any:
    """Returns held-out rows, of one source or of several by name, with the column `ROW`."""
    if data is None:
        return None
    if isinstance(data, dict):
        return {name: with_row_numbers(rows) for name, rows in data.items()}
    return data.add_column(ROW, range(len(data)))


def spread_over_updates(rows: int, updates: int, seed: int, step: int, first: int = 0) -> list[Tensor]:
    """Returns the rows of each update, in random order: of every `updates` rows that follow each other each
    update gets one.

    So every process keeps its rows, and an update is over the same rows whatever the number of processes.

    Args:
        rows: of this process, a multiple of `updates`.
        updates: number of parts.
        seed: of the run.
        step: updates of the run so far.
        first: number of this process's first row among those of all processes.
    """
    blocks = range(first // updates, (first + rows) // updates)
    orders = [
        np.random.default_rng(numbers).permutation(updates)
        for numbers in seeds_of_rows(seed, ORDER, step, blocks)
    ]
    own = np.stack(orders) + updates * np.arange(len(orders))[:, None]  # (blocks, updates)
    return list(torch.from_numpy(own.T.copy()))
