"""What a source holds, before anything is trained on it: rows, shape, lengths, padding, duplicates,
languages, a fitting length.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.config import SourceConfig
from llmlab.data.opening import each_row, open_source
from llmlab.data.packing import documents_table, pack, padding_share, row_lengths
from llmlab.data.pipeline import SourceRows
from llmlab.data.rendering import IGNORE_INDEX, decode, tokenize_conversation, tokenize_pair
from llmlab.data.schemas import SHAPES, InvalidRow, Row, to_messages
from llmlab.data.text_profile import Profiler, TextProfile
from llmlab.data.words import row_text
from llmlab.errors import LabError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
PERCENTILES = (50, 90, 95, 99, 100)
MEASURED = 5_000  # rows whose tokens are counted, spread evenly
READ = 200_000  # rows that are read at most
BATCH = 8  # rows of the batch whose padding is shown
ENOUGH = 0.95  # share of the rows that a good length holds
WITHOUT_LIMIT = 1 << 30


@dataclass
class Fit:
    """What a longest row of `length` tokens means: the share of rows that fit,
    and of padding in three kinds of batches.
    """

    length: int
    fits: float
    padded: float
    longest: float
    packed: float


@dataclass
class Inspection:
    """What was found in a source.

    Attributes:
        rows: read, the unusable ones included.
        complete: whether these are all rows there are.
        shape: of the canonical rows.
        columns: part -> column.
        prompt: the prompt of a classification; "" where a column holds it.
        notes: what was left out, what is there twice.
        labels: label word -> rows, of a classification.
        lengths: part -> tokens of the measured rows.
        texts: words, languages and near duplicates; None where no row is usable.
        percentiles: part -> tokens at 50, 90, 95, 99 and 100 %.
        fits: one entry for each length.
        suggested: a longest row, and why.
        sample: text pieces of one row, and whether each is learned.
    """

    source: SourceConfig
    rows: int
    complete: bool
    shape: str
    columns: dict[str, str]
    prompt: str
    notes: list[str]
    labels: dict[str, int]
    lengths: dict[str, np.ndarray]
    texts: TextProfile | None = None
    percentiles: dict[str, list[int]] = field(default_factory=dict)
    fits: list[Fit] = field(default_factory=list)
    suggested: tuple[int, str] = (0, "")
    sample: list[tuple[str, bool]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as JSON data."""
        return {
            "source": self.source.line(),
            "rows": self.rows,
            "complete": self.complete,
            "shape": self.shape,
            "columns": self.columns,
            "labels": self.labels,
            "notes": self.notes,
            "texts": self.texts and vars(self.texts),
            "percentiles": {
                part: dict(zip(map(str, PERCENTILES), values, strict=True))
                for part, values in self.percentiles.items()
            },
            "fits": [vars(fit) for fit in self.fits],
            "suggested_max_length": self.suggested[0],
            "reason": self.suggested[1],
        }


def inspect(source: SourceConfig, tokenizer: PreTrainedTokenizerBase, *, limit: int = READ) -> Inspection:
    """Returns what a source holds, as this tokenizer and its chat template see it.

    Raises:
        LabError: when it cannot be read or its columns fit no shape.
    """
    opened = open_source(source, SHAPES)
    source_rows = SourceRows(opened, compare=True)
    rows: list[Row] = []
    profiler = Profiler()
    for number, raw in enumerate(islice(each_row(opened.rows), limit)):
        if (row := source_rows.take(number, raw)) is not None:
            rows.append(row)
            profiler.add(row_text(opened.mapping, raw, row))
    read = source_rows.counter.read
    labels = Counter(row["completion"] for row in rows if "choices" in row)
    complete = read < limit or (not opened.is_stream and len(opened.rows) == read)
    inspection = Inspection(
        source,
        read,
        complete,
        opened.mapping.shape,
        opened.mapping.columns,
        opened.mapping.prompt,
        source_rows.notes(),
        dict(labels),
        {},
    )
    if rows:
        inspection.texts = profiler.result()
        chosen = [
            rows[index * len(rows) // min(MEASURED, len(rows))] for index in range(min(MEASURED, len(rows)))
        ]
        try:
            inspection.lengths = lengths_of(chosen, tokenizer)
        except InvalidRow as invalid:
            raise LabError(
                invalid.reason, where=source.name, remedy="another `--tokenizer` may have a template for it"
            ) from None
        inspection.percentiles = {
            part: [int(value) for value in np.percentile(values, PERCENTILES, method="higher")]
            for part, values in inspection.lengths.items()
        }
        inspection.fits = [fit(inspection.lengths["row"], length) for length in LENGTHS]
        inspection.suggested = suggest(inspection.lengths["row"])
        inspection.sample = sample_pieces(chosen[0], tokenizer)
    return inspection


def lengths_of(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, np.ndarray]:
    """Returns the tokens of every part of each row, and of the whole `row` as training sees it."""
    parts: dict[str, list[int]] = {}

    def add(**sizes: int) -> None:
        for part, size in sizes.items():
            parts.setdefault(part, []).append(size)

    for row in rows:
        if "text" in row:
            add(row=len(tokenizer(row["text"], add_special_tokens=False)["input_ids"]) + 1)
        elif "chosen" in row:
            pair = tokenize_pair(
                tokenizer, row["prompt"], row["chosen"], row["rejected"], WITHOUT_LIMIT, WITHOUT_LIMIT
            )
            prompt, chosen, rejected = (
                len(pair[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
            )
            add(prompt=prompt, chosen=chosen, rejected=rejected, row=prompt + max(chosen, rejected))
        elif "answer" in row:
            pair = tokenize_pair(
                tokenizer, row["prompt"], row["answer"], row["answer"], WITHOUT_LIMIT, WITHOUT_LIMIT
            )
            add(prompt=len(pair["prompt_ids"]), answer=len(pair["chosen_ids"]), row=len(pair["prompt_ids"]))
        else:
            tokens = tokenize_conversation(tokenizer, to_messages(row), "assistant")
            learned = sum(label != IGNORE_INDEX for label in tokens["labels"])
            add(prompt=len(tokens["labels"]) - learned, completion=learned, row=len(tokens["labels"]))
    return {part: np.array(sizes) for part, sizes in parts.items()}


def fit(lengths: np.ndarray, length: int) -> Fit:
    """Returns what a longest row of `length` tokens means for rows of these lengths."""
    truncated = np.minimum(lengths, length)
    batches = [truncated[start : start + BATCH] for start in range(0, len(truncated), BATCH)]
    drawn = sum(len(batch) * int(batch.max()) for batch in batches)
    table = documents_table({"input_ids": [np.zeros(size, np.int32) for size in truncated]})
    packed = padding_share(row_lengths(pack(table, length, "best_fit")), length)
    return Fit(
        length,
        float((lengths <= length).mean()),
        padding_share(truncated, length),
        1 - float(truncated.sum()) / drawn,
        packed,
    )


def suggest(lengths: np.ndarray) -> tuple[int, str]:
    """Returns a longest row and the reason for it: the shortest power of two that holds 95 % of the rows."""
    powers = [1 << exponent for exponent in range(6, 18)]
    length = next((power for power in powers if (lengths <= power).mean() >= ENOUGH), powers[-1])
    share, more = (lengths <= length).mean(), (lengths <= 2 * length).mean()
    if share == 1:
        return length, "every row fits; half of it would truncate some"
    gain = (
        f"twice of it would hold {more - share:.1%} more for twice the memory"
        if more > share
        else "few rows are longer"
    )
    return length, f"{share:.1%} of the rows fit; {gain}"


def sample_pieces(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """Returns a row as the model sees it, in pieces of text, each with whether it bears loss."""
    if "text" in row:
        return [(row["text"], True)]
    if "chosen" in row:
        pair = tokenize_pair(
            tokenizer, row["prompt"], row["chosen"], row["rejected"], WITHOUT_LIMIT, WITHOUT_LIMIT
        )
        return [
            (decode(tokenizer, pair["prompt_ids"]), False),
            (decode(tokenizer, pair["chosen_ids"]), True),
            ("\n  or, rejected:\n", False),
            (decode(tokenizer, pair["rejected_ids"]), True),
        ]
    if "answer" in row:
        pair = tokenize_pair(
            tokenizer, row["prompt"], row["answer"], row["answer"], WITHOUT_LIMIT, WITHOUT_LIMIT
        )
        return [
            (decode(tokenizer, pair["prompt_ids"]), False),
            (f"\n  the reference answer: {row['answer']}", False),
        ]
    tokens = tokenize_conversation(tokenizer, to_messages(row), "assistant")
    pieces: list[tuple[str, bool]] = []
    start = 0
    learned = [label != IGNORE_INDEX for label in tokens["labels"]]
    for end in range(1, len(learned) + 1):
        if end == len(learned) or learned[end] != learned[start]:
            pieces.append((decode(tokenizer, tokens["input_ids"][start:end]), learned[start]))
            start = end
    return pieces
