"""Rows that are nearly the same: MinHash signatures (Broder 1997, by datasketch) and their bands (LSH).

The likeness of two rows is the Jaccard index of their sets of word pairs: pairs in common / pairs of both.
Of a row in which a share p of the words, spread at random, is replaced, (1 - p)^2 = s of the pairs remain,
and the likeness is s / (2 - s): 0.82 with 5 % of the words changed, 0.68 with 10 %, 0.47 with 20 %. It is
estimated as the share of 256 hash minima that agree: its standard error is sqrt(J (1 - J) / 256), 0.025 at
a likeness of 0.8.

Rows are taken in an order that follows from their content, the longest first; a row is left out where one
that is kept is as like as asked. So the result depends neither on the order of the rows nor on the number of
processes, and every row that is left out has a kept one beside it, which chains of likenesses would not give.

datasketch's own index, `MinHashLSH`, keeps a Python set for each band of each row. Here the bands are sorted
in arrays: 4 bytes for each band of each row; signatures (1,024 bytes a row) can lie in a file without a name.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from llmlab.data.words import phrase_hashes

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 256
SHINGLE = 2  # words
COMPARED = 0.995  # least probability that two rows as like as asked share a band
_LOW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class Near:
    """A row that is nearly the same as one that is kept.

    Attributes:
        kept: place of that row.
        likeness: the estimated Jaccard index of both.
    """

    kept: int
    likeness: float


@cache
def _empty() -> MinHash:
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, hashfunc=int)


def signature(hashes: np.ndarray) -> np.ndarray:
    """Returns the MinHash signature of a text: uint32, shape (256,).

    Args:
        hashes: of its words; a text of one word counts as that word, one of none as empty.
    """
    pairs = phrase_hashes(hashes, min(SHINGLE, max(1, len(hashes))))
    minima = _empty().copy()
    minima.update_batch(np.unique(pairs & _LOW).tolist())
    values: np.ndarray = minima.hashvalues
    return values


class Signatures:
    """The signatures of many rows, in a file that is gone when the process ends.

    Args:
        folder: where the file lies; None for the system's folder of temporary files.
    """

    def __init__(self, folder: Path | None = None):
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with the object)
        self.count = 0

    def add(self, signature: np.ndarray) -> None:
        """Adds the signature of the next row."""
        self._file.write(signature.tobytes())
        self.count += 1

    def close(self) -> None:
        """Lets the file go; what `array` returned stays usable."""
        self._file.close()

    def array(self) -> np.ndarray:
        """Returns all of them, memory-mapped: uint32, shape (rows, 256)."""
        if not self.count:
            return np.empty((0, PERMUTATIONS), np.uint32)
        self._file.flush()
        return np.memmap(self._file, np.uint32, "r", shape=(self.count, PERMUTATIONS))


def bands(near: float) -> tuple[int, int]:
    """Returns how many bands there are, and the minima in each: as few and as long ones as find rows of this
    likeness with a probability of 99.5 %. At 0.8 these are 32 bands of 8 minima.
    """
    sizes = range(PERMUTATIONS, 1, -1)
    size = next((size for size in sizes if _compared(near, PERMUTATIONS // size, size) >= COMPARED), 1)
    return PERMUTATIONS // size, size


def _compared(likeness: float, count: int, size: int) -> float:
    """Returns the probability that two rows of a likeness share a band."""
    return float(1 - (1 - likeness**size) ** count)


def near_duplicates(signatures: np.ndarray, order: np.ndarray, near: float) -> dict[int, Near]:
    """Returns the rows to leave out, each with the row that stays for it.

    Args:
        signatures: of all rows, shape (rows, 256).
        order: places of the rows, what is kept first in front.
        near: likeness from which on a row is left out, 0 to 1.
    """
    buckets = _shared_buckets(signatures, near)
    shared = np.any(buckets >= 0, axis=0)
    least = near * PERMUTATIONS - 1e-6
    members: dict[tuple[int, int], list[int]] = {}
    result: dict[int, Near] = {}
    for place in order[shared[order]].tolist():
        keys = [(band, bucket) for band, bucket in enumerate(buckets[:, place].tolist()) if bucket >= 0]
        candidates = list(dict.fromkeys(other for key in keys for other in members.get(key, ())))
        if candidates:
            alike = np.count_nonzero(signatures[candidates] == signatures[place], axis=1)
            best = int(alike.argmax())
            if alike[best] >= least:
                result[place] = Near(candidates[best], float(alike[best]) / PERMUTATIONS)
                continue
        for key in keys:
            members.setdefault(key, []).append(place)
    return result


def _shared_buckets(signatures: np.ndarray, near: float) -> np.ndarray:
    """Returns the bucket of each row in each band, -1 where the row is alone: int32, shape (bands, rows)."""
    count, size = bands(near)
    buckets = np.full((count, len(signatures)), -1, np.int32)
    for band in range(count):
        columns = signatures[:, band * size : (band + 1) * size]
        keys = _folded(columns)
        _, places, members = np.unique(keys, return_inverse=True, return_counts=True)
        together = members[places] > 1
        buckets[band, together] = places[together]
    return buckets


def _folded(columns: np.ndarray) -> np.ndarray:
    """Returns a hash of each row of a band: uint64, shape (rows,)."""
    keys = np.zeros(len(columns), np.uint64)
    for column in range(columns.shape[1]):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + columns[:, column] + np.uint64(1)
        keys ^= keys >> np.uint64(29)
    return keys
