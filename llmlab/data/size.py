"""How much there is to train on, before a run: rows counted, tokens of some of them. Only what is on this
machine is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmlab.config import SourceConfig
from llmlab.data.inspect import lengths_of
from llmlab.data.local import local_files
from llmlab.data.opening import open_source
from llmlab.data.pipeline import SourceRows
from llmlab.data.schemas import InvalidRow, Row
from llmlab.errors import LabError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOOKED_AT = 300  # rows of a source whose tokens are counted, spread evenly


@dataclass(frozen=True)
class SourceSize:
    """What a source holds.

    Attributes:
        rows: usable ones, about.
        lengths: tokens of those that were looked at; of a pair twice those of its longer answer with the
            prompt.
    """

    rows: int
    lengths: tuple[int, ...]

    def divided(self, by: float) -> SourceSize:
        """Returns the same in another unit: tokens of so many bytes each."""
        return SourceSize(self.rows, tuple(math.ceil(length / by) for length in self.lengths))

    def tokens(self, longest: int, together: int = 1) -> float:
        """Returns the tokens of all rows, about, each cut at `longest` and padded to the longest of so many
        rows that are read together.
        """
        if not self.lengths:
            return 0.0
        return self.rows * padded_mean(self.lengths, longest, together)


def padded_mean(lengths: Sequence[int], longest: int, together: int) -> float:
    """Returns the mean length of rows that are cut at `longest` and padded to the longest of a batch."""
    cut = [min(length, longest) for length in lengths]
    batches = [cut[start : start + together] for start in range(0, len(cut), together)]
    return sum(max(batch) * len(batch) for batch in batches) / len(cut)


def source_size(
    source: SourceConfig, shapes: tuple[str, ...], tokenizer: PreTrainedTokenizerBase | None
) -> SourceSize | None:
    """Returns what a source holds; None where it is a stream, or not on this machine.

    Args:
        source: to look at.
        shapes: of rows that are wanted.
        tokenizer: that counts; None counts bytes.

    Raises:
        LabError: when the source cannot be read.
    """
    if not local_files(source.name, source.split):
        return None
    opened = open_source(source, shapes)
    if opened.is_stream:
        return None
    total = len(opened.rows)
    chosen = range(0, total, max(1, total // LOOKED_AT))
    reader, rows = SourceRows(opened), []
    for number in chosen:
        if (row := reader.take(number, opened.rows[number])) is not None:
            rows.append(row)
    usable = round(total * len(rows) / max(1, len(chosen)))
    return SourceSize(usable, tuple(_length(row, tokenizer) for row in rows))


def _length(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> int:
    if tokenizer is None:
        return sum(len(str(value).encode()) for value in row.values())
    try:
        sizes = {part: int(values[0]) for part, values in lengths_of([row], tokenizer).items()}
    except (InvalidRow, LabError):
        return 0
    if "chosen" in sizes:
        return 2 * (sizes["prompt"] + max(sizes["chosen"], sizes["rejected"]))
    return sizes["row"]
