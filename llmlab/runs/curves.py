"""The figures of a run over its steps, read from `metrics.jsonl`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmlab.runs.figures import SUITE_SECONDS

Point = tuple[int, float]
# logged beside the figures: places, clocks and counts, which are no curves to look at
NO_FIGURES = ("step", "epoch", "total_flos")
CLOCKS = ("runtime", "per_second", "num_tokens", "tokens_seen")
# what a run is about: its training figure and the held-out one, of the first pair that was logged
HEADLINES = (("reward", "eval_reward"), ("loss", "eval_loss"))


def curves(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Returns the points (step, value) of every figure by its name, in the order in which they were logged.

    A step that was logged twice, by a run that was resumed, has its last value.
    """
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if not is_figure(name) or not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            if math.isfinite(value):
                found.setdefault(name, {})[line["step"]] = float(value)
    if "eval_reward" in found:  # 0 where the policy is what it was at the last update: no figure
        found.pop("eval_loss", None)
    return {name: sorted(points.items()) for name, points in found.items()}


def is_figure(name: str) -> bool:
    """Returns whether a logged entry says how well a run does, and not where it is or how fast."""
    return name not in NO_FIGURES and not name.endswith(CLOCKS) and name != "train_loss"


def headline(names: Iterable[str]) -> tuple[str, str]:
    """Returns the training figure and the held-out figure that a run is about; names that were not logged
    where it has neither.
    """
    there = set(names)
    return next((pair for pair in HEADLINES if there & set(pair)), HEADLINES[-1])


def tokens_read(lines: Iterable[Mapping[str, Any]]) -> int:
    """Returns how many tokens were read in training, padding included; 0 where none were counted."""
    counts = [line["num_input_tokens_seen"] for line in lines if "num_input_tokens_seen" in line]
    return int(max((count for count in counts if isinstance(count, (int, float))), default=0))


def evaluating(lines: Iterable[Mapping[str, Any]]) -> float:
    """Returns the seconds that the evaluations on a suite took."""
    times = (line.get(SUITE_SECONDS) for line in lines)
    return float(sum(value for value in times if isinstance(value, (int, float)) and value >= 0))


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Returns at most `most` points: each the mean of as many neighbours, at the last one's step."""
    if len(points) <= most:
        return list(points)
    edges = [index * len(points) // most for index in range(most + 1)]
    parts = (points[start:end] for start, end in itertools.pairwise(edges))
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def mean_curve(several: Sequence[Sequence[Point]]) -> list[tuple[int, float, float, float]]:
    """Returns (step, mean, least, largest) at each step that all of several curves have."""
    if not several:
        return []
    tables = [dict(points) for points in several]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    columns = ((step, [table[step] for table in tables]) for step in steps)
    return [(step, sum(values) / len(values), min(values), max(values)) for step, values in columns]
