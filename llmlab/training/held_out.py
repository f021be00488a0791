"""Held-out figures that do not depend on how the rows were cut up: not on the batch size, nor on the number
of processes.

Every row is read once. A mean over tokens is one over all tokens that are learned, a mean over rows one over
all rows: never a mean of the means of batches, in which a short row counts as much as a long one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import Sampler

EACH = ""  # the weight of the figures that have none of their own
CHOSEN = {
    "min_": min,
    "max_": max,
}  # how the last part of a name begins whose least, or largest, value is meant


class HeldOutBatches(Sampler[list[int]]):
    """The batches of one process, in order: its own rows, as many as every other process has, then the rows
    that are left.

    Of `rows` = q x `processes` + r, each process has q to itself. The r that are left are read by every
    process, so that all do the same number of passes (a sharded model needs that), and count `1 / processes`
    in each.

    Args:
        rows: held-out rows of all processes together.
        batch_size: rows of a pass, at most.
        process: number of this process, from 0.
        processes: how many there are.
    """

    def __init__(self, rows: int, batch_size: int, process: int = 0, processes: int = 1):
        each = rows // processes
        self.batch_size = batch_size
        own = _cut(range(process * each, (process + 1) * each), batch_size)
        left = _cut(range(each * processes, rows), batch_size)
        self.batches = own + left
        self.shares = [1.0] * len(own) + [1 / processes] * len(left)  # what each batch counts in this process

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the numbers of the rows of each batch."""
        return iter(self.batches)


def _cut(rows: range, size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


class HeldOutFigures:
    """Gathers the figures of the batches of one validation.

    Args:
        shares: what each batch counts in this process, in order.
    """

    def __init__(self, shares: list[float]):
        self.shares = shares
        self.batches: list[tuple[dict[str, float], dict[str, float]]] = []

    def add(self, figures: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Takes the figures of the next batch.

        Args:
            figures: means over the batch, or its least or largest value.
            weights: what each mean is over (tokens, rows), by the figure's name; under "" that of all the
                others.
        """
        share = self.shares[len(self.batches)]
        self.batches.append((dict(figures), {name: weight * share for name, weight in weights.items()}))

    def totals(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Returns each figure over all batches of all processes; without one that no batch had.

        Args:
            reduce: adds up a tensor of doubles over the processes.
        """
        names = list(dict.fromkeys(name for figures, _ in self.batches for name in figures))
        sums = torch.zeros(len(names), 2, dtype=torch.float64)
        for figures, weights in self.batches:
            for place, name in enumerate(names):
                weight, value = weights.get(name, weights[EACH]), figures.get(name, math.nan)
                if weight and not math.isnan(value):
                    sums[place] += torch.tensor([value * weight, weight], dtype=torch.float64)
        sums = reduce(sums)
        totals = {
            name: (total / weight).item() for name, (total, weight) in zip(names, sums, strict=True) if weight
        }
        for name in totals:
            if choose := CHOSEN.get(name.rsplit("/")[-1][:4]):  # TRL has looked at all processes
                totals[name] = choose(
                    value for f, _ in self.batches if not math.isnan(value := f.get(name, math.nan))
                )
        return totals


def learned_tokens(labels: torch.Tensor, *, shifted: bool = True) -> int:
    """Returns the number of labels that are learned.

    Args:
        labels: (B, T), -100 where nothing is.
        shifted: whether the first label of a row is never predicted, as in a decoder.
    """
    return int(((labels[..., 1:] if shifted else labels) != -100).sum())


def pair_weights(batch: Mapping[str, Any]) -> dict[str, float]:
    """Returns the weights of the figures of a batch of preference pairs: pairs, and tokens where the mean is
    over tokens.

    Args:
        batch: `input_ids` (2 B, T), the chosen answers before the rejected ones; `completion_mask` of that
            shape, where tokens are scored.
    """
    weights = {EACH: len(batch["input_ids"]) / 2}
    if "completion_mask" in batch:
        chosen, rejected = (int(part.sum()) for part in batch["completion_mask"][:, 1:].chunk(2))
        weights |= {
            "logits/chosen": chosen,
            "mean_token_accuracy": chosen,
            "logits/rejected": rejected,
            "entropy": chosen + rejected,
        }
    return weights


def answer_weights(rows: int, figures: Mapping[str, float]) -> dict[str, float]:
    """Returns the weights of the figures of a batch of sampled answers: answers, and tokens or ended ones
    where the mean is so.

    Args:
        rows: answers of the batch.
        figures: of the batch.
    """
    return {
        EACH: rows,
        "entropy": rows * figures.get("completions/mean_length", 1.0),
        "completions/mean_terminated_length": rows * (1 - figures.get("completions/clipped_ratio", 0.0)),
    }


def squares(figures: Mapping[str, float], rows: int) -> dict[str, float]:
    """Returns the figures with mean squares in the place of standard deviations, which cannot be averaged.

    Args:
        figures: of a batch, the deviations with `rows` - 1 in their denominator.
        rows: of the batch.
    """
    result = dict(figures)
    for name in filter(_mean_of, figures):
        spread, mean = figures[name], figures[_mean_of(name)]
        result[name] = (0.0 if math.isnan(spread) else spread**2) * (rows - 1) / rows + mean**2
    return result


def deviations(figures: Mapping[str, float]) -> dict[str, float]:
    """Returns figures over all batches, made of those of `squares`,
    with standard deviations in the place of mean squares.
    """
    result = dict(figures)
    for name in filter(_mean_of, figures):
        result[name] = math.sqrt(max(0.0, figures[name] - figures[_mean_of(name)] ** 2))
    return result


def _mean_of(name: str) -> str:
    """Returns the name of the mean that a deviation is around;
    "" where the name is not that of a deviation.
    """
    for ending, mean in (("/std", "/mean"), ("reward_std", "reward")):
        if name.endswith(ending) and not name.endswith("zero_std"):
            return name.removesuffix(ending) + mean
    return ""
