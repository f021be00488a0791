"""Mixtures: which source and which of its rows comes at each position, as a function of seed and position
alone.

The source at a position is drawn by a sequence of even spread (the multiples of the golden ratio, Weyl 1916;
its discrepancy falls with log n / n), so that the shares of any stretch are those of the weights far closer
than by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Mix:
    """How the sources of a stream are mixed.

    Attributes:
        shares: of each source, adding up to 1.
        seed: of the order.
        stop: "first_exhausted" ends before a source would be repeated, "all_exhausted" once every row was
            seen.
        endless: begins again when it is over.
    """

    shares: list[float]
    seed: int
    stop: str
    endless: bool = False


def sources_at(start: int, count: int, shares: list[float], seed: int) -> np.ndarray:
    """Returns the number of the source at each of `count` positions from `start` on, (count,) int64."""
    offset = np.random.default_rng(seed).random()
    points = (np.arange(start, start + count, dtype=np.float64) * GOLDEN + offset) % 1.0
    edges = np.cumsum(shares)[:-1]
    return np.searchsorted(edges, points, side="right")


def order(size: int, seed: int, source: int, again: int) -> np.ndarray:
    """Returns the order of a source's rows in its pass number `again`: a permutation of `size`."""
    return np.random.default_rng([seed, source, again]).permutation(size)


def mixture(sizes: list[int], shares: list[float], seed: int, stop: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns source and row of every position of one pass over a mixture, two arrays of equal length.

    Args:
        sizes: rows of each source.
        shares: of each source, adding up to 1; a share of 0 leaves it out.
        seed: of the order.
        stop: "first_exhausted" ends before a source would be repeated, "all_exhausted" once every row was
            seen.
    """
    drawn = [index for index, share in enumerate(shares) if share and sizes[index]]
    if not drawn:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    longest = {"first_exhausted": min, "all_exhausted": max}[stop](sizes[i] / shares[i] for i in drawn)
    draws = sources_at(0, int(longest * 1.01) + 1000, shares, seed)
    draws = draws[np.isin(draws, drawn)]  # of a source whose rows are all left out nothing comes
    ends = []
    for index in drawn:
        places = np.flatnonzero(draws == index)
        full = sizes[index] if stop == "all_exhausted" else sizes[index] + 1
        if len(places) >= full:
            ends.append(places[full - 1] + (stop == "all_exhausted"))
    draws = draws[: {"first_exhausted": min, "all_exhausted": max}[stop](ends)]
    rows = np.empty(len(draws), np.int64)
    for index in drawn:
        places = np.flatnonzero(draws == index)
        passes = -(-len(places) // sizes[index]) if len(places) else 0
        orders = [order(sizes[index], seed, index, again) for again in range(passes)]
        rows[places] = np.concatenate(orders)[: len(places)] if orders else []
    return draws, rows


def is_held_out(position: np.ndarray, fraction: float) -> np.ndarray:
    """Returns whether each row of a source is held out: an exact share, spread evenly, from the second row
    on.

    It depends on the position alone, so that neither a seed nor the next stage of training moves a row
    across.
    """
    if not fraction:
        return np.zeros(len(position), bool)

    def until(rows: np.ndarray) -> np.ndarray:
        return np.maximum(np.floor(rows * fraction + 0.5), rows >= 2)

    return until(position + 1) > until(position)
