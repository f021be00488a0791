"""Answers drawn by numbers that depend on nothing but a row's seed and the place in the answer.

A token is the inverse of the distribution function at a uniform number. So a row's answer is the same in any
batch, with any number of processes, and wherever a run was stopped; the global random generators are left
alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.configuration_utils import BaseWatermarkingConfig

BITS = 30  # of a uniform number: with the 32 of a probability and their sum's 33rd below the 63 of an integer


class SeededDraw(LogitsProcessor):
    """Draws the next token of every row and makes it certain; applied last, behind temperature, top-k and
    top-p.

    Integers keep it exact: sums in floating point have no deterministic kernel on CUDA.

    Args:
        numbers: uniform in [0, 2^BITS), (rows, tokens).
    """

    def __init__(self, numbers: Tensor):
        self.numbers = numbers
        self.position = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores, (rows, vocabulary), that are 0 at the drawn token and minus infinity elsewhere."""
        number = self.numbers[:, self.position].to(scores.device)
        self.position += 1
        ends = (scores.float().softmax(dim=-1) * 2**32).long().cumsum(dim=-1)  # (rows, vocabulary)
        place = (ends[:, -1:] * number[:, None]) >> BITS
        drawn = torch.searchsorted(ends, place, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


@dataclass
class SeededDraws(BaseWatermarkingConfig):
    """What a `GenerationConfig` carries to have its tokens drawn so: the processor of a watermark is the one
    it applies last.

    Attributes:
        seeds: of the rows, four integers each.
        length: tokens of the longest answer.
    """

    seeds: list[tuple[int, int, int, int]]
    length: int

    def validate(self) -> None:
        """Has nothing to check."""

    def construct_processor(self, vocab_size: int, device: Any = None) -> SeededDraw:
        """Returns the processor of one call of `generate`."""
        rows = [np.random.default_rng(seed).integers(0, 2**BITS, self.length) for seed in self.seeds]
        return SeededDraw(torch.from_numpy(np.stack(rows)))


def seeds_of_rows(seed: int, purpose: int, step: int, rows: Iterable[int]) -> list[tuple[int, int, int, int]]:
    """Returns the seeds of rows by their numbers."""
    return [(seed, purpose, step, row) for row in rows]
