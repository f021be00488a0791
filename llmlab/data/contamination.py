"""Evaluation rows that stand in training data: phrases of 13 words in common.

The rule is that of GPT-3 (Brown et al. 2020, appendix C): words in lower case without punctuation; a row is
contaminated when any 13 words in a row of it stand in a training row. Rows of 8 to 12 words are one phrase,
which may stand anywhere (there 8 is the fewest as well: shorter phrases meet by chance); rows of fewer than 8
words have to be a whole training row. Words in phrases of 8 that stand in more than 10 different evaluation
rows are the wording of the task: 13 words with fewer than 8 others are ignored. Beside it stands the stricter
figure of Llama 2 (Touvron et al. 2023, appendix A.6): rows of which at least 80 % of the words stand in such
phrases.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmlab.config import SourceConfig
from llmlab.data.opening import OpenSource, each_row, open_source
from llmlab.data.schemas import SHAPES, InvalidRow
from llmlab.data.words import phrase_hashes, row_text, word_hashes, words

PHRASE = 13  # words
FEWEST = 8  # words of a phrase that may stand anywhere
COMMON = 10  # evaluation rows that a phrase may stand in
MOST_OF_IT = 0.8  # share of a row's words
EXAMPLES = 5
_WHOLE = np.uint64(0xA5A5A5A5A5A5A5A5)  # marks the hash of a row as a whole


@dataclass(frozen=True)
class PhraseTable:
    """What training rows are searched for.

    Attributes:
        hashes: of phrases, sorted: uint64, shape (phrases,).
        lengths: of phrases that may stand anywhere, in words.
    """

    hashes: np.ndarray
    lengths: tuple[int, ...]

    def found_in(self, text: np.ndarray) -> np.ndarray:
        """Returns the places in `hashes` of the phrases that stand in a text: int64, sorted.

        Args:
            text: hashes of its words.
        """
        parts = [phrase_hashes(text, length) for length in self.lengths]
        if 0 < len(text) < FEWEST:
            parts.append(_whole(text))
        phrases = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        if not len(self.hashes) or not len(phrases):
            return np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self.hashes, phrases), len(self.hashes) - 1)
        return np.unique(places[self.hashes[places] == phrases])


@dataclass(frozen=True)
class SharedRow:
    """An evaluation row that stands in the training data; rows are counted from 1.

    Attributes:
        row: of the evaluation set.
        training_row: the first one with a phrase of it.
        share: of its words that stand in shared phrases.
        phrase: the first shared one.
    """

    row: int
    training_row: int
    share: float
    phrase: str


@dataclass(frozen=True)
class Contamination:
    """What of an evaluation set stands in the training data.

    Attributes:
        source: the evaluation set.
        rows: of it that were compared.
        touched: rows with a shared phrase.
        contained: rows of which at least 80 % of the words stand in shared phrases.
        ignored: phrases that are mostly wording of the task: words that more than 10 of its rows share.
        examples: the first ones.
    """

    source: SourceConfig
    rows: int
    touched: int
    contained: int
    ignored: int
    examples: list[SharedRow] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as JSON data."""
        return {**vars(self), "source": named(self.source), "examples": [vars(row) for row in self.examples]}


def named(source: SourceConfig) -> str:
    """Returns the line of a source, with its split where it is not the usual one."""
    return source.line() if source.split == "train" else f"{source.line()} (split {source.split})"


class EvaluationPhrases:
    """The phrases of evaluation sets: some 40 bytes for each of their words.

    Args:
        sources: the evaluation sets.

    Raises:
        LabError: when one cannot be read.
    """

    def __init__(self, sources: Iterable[SourceConfig]):
        self.opened = [open_source(source, SHAPES) for source in sources]
        hashes, short, once = array("Q"), array("Q"), [array("Q") for _ in self.opened]
        self._sets, self._rows, self._lengths, self._ends = array("l"), array("q"), array("b"), array("q")
        for number, opened in enumerate(self.opened):
            seen = set[int]()
            for row, text in row_texts(opened):
                values = word_hashes(text)
                if not len(values):
                    continue
                length = min(PHRASE, len(values)) if len(values) >= FEWEST else 0
                phrases = phrase_hashes(values, length) if length else _whole(values)
                hashes.frombytes(phrases.tobytes())
                shorter = phrase_hashes(values, FEWEST) if len(values) >= PHRASE else values[:0]
                short.frombytes(shorter.tobytes())
                if (key := int(_whole(values)[0])) not in seen:
                    seen.add(key)
                    once[number].frombytes(np.unique(shorter).tobytes())
                self._sets.append(number)
                self._rows.append(row)
                self._lengths.append(length)
                self._ends.append(len(hashes))
        self._phrases = np.array(hashes, np.uint64)
        self._common = self._wording(np.array(short, np.uint64), once)
        lengths = tuple(sorted({length for length in self._lengths if length}))
        self.table = PhraseTable(np.unique(self._phrases[~self._common]), lengths)
        self._first = np.full(len(self.table.hashes), -1, np.int64)  # training row of each phrase

    def _wording(self, short: np.ndarray, once: list[array[int]]) -> np.ndarray:
        """Returns which phrases are mostly wording of the task: bool, shape (phrases,).

        Args:
            short: phrases of 8 words of the rows of 13 words and more, row by row.
            once: of each set, those of its different rows, each once a row.
        """
        result = np.zeros(len(self._phrases), bool)
        if not len(short):
            return result
        common = []
        for of_set in once:
            different, rows = np.unique(np.array(of_set, np.uint64), return_counts=True)
            common.append(different[rows > COMMON])
        start = place = 0
        for number, length, end in zip(self._sets, self._lengths, self._ends, strict=True):
            phrases, start = end - start, end
            if length != PHRASE:
                continue
            count = phrases + PHRASE - FEWEST
            shared = np.isin(short[place : place + count], common[number]) if len(common[number]) else None
            place += count
            if shared is not None and shared.any():
                others = np.cumsum(np.concatenate([[0], ~_words_in(shared, FEWEST)]))
                result[end - phrases : end] = others[PHRASE:] - others[:-PHRASE] < FEWEST
        return result

    def _of_set(self, number: int) -> np.ndarray:
        """Returns which phrases are those of a set: bool, shape (phrases,)."""
        sizes = np.diff(np.concatenate([[0], np.array(self._ends, np.int64)]))
        return np.repeat(np.array(self._sets, np.int64) == number, sizes)

    def add(self, number: int, found: np.ndarray) -> None:
        """Takes what `table.found_in` found in training row `number`, in any order of rows."""
        before = self._first[found]
        self._first[found] = np.where(before < 0, number, np.minimum(before, number))

    def result(self) -> list[Contamination]:
        """Returns what of each evaluation set was found."""
        known = np.full(len(self._phrases), -1, np.int64)
        if len(self.table.hashes):
            places = np.searchsorted(self.table.hashes, self._phrases[~self._common])
            known[~self._common] = self._first[places]
        touched: list[list[tuple[int, int, float, int]]] = [[] for _ in self.opened]
        counts, start = [0] * len(self.opened), 0
        for number, row, length, end in zip(self._sets, self._rows, self._lengths, self._ends, strict=True):
            counts[number] += 1
            first, common = known[start:end], self._common[start:end]
            start = end
            if (first >= 0).any():
                place = int((first >= 0).argmax())
                training_row = int(first[first >= 0].min())
                touched[number].append((row, training_row, _covered(first >= 0, common, length), place))
        return [
            Contamination(
                opened.config,
                counts[number],
                len(touched[number]),
                sum(share >= MOST_OF_IT for _, _, share, _ in touched[number]),
                len(np.unique(self._phrases[self._common & self._of_set(number)])),
                list(_examples(opened, touched[number][:EXAMPLES])),
            )
            for number, opened in enumerate(self.opened)
        ]


def _whole(hashes: np.ndarray) -> np.ndarray:
    return phrase_hashes(hashes, len(hashes)) ^ _WHOLE


def _covered(found: np.ndarray, common: np.ndarray, length: int) -> float:
    """Returns the share of a row's words that stand in the phrases found; a task's wording is no part of
    the row.
    """
    if not length:
        return 1.0
    covered = _words_in(found, length)
    return float(covered.sum() / (covered | ~_words_in(common, length)).sum())


def _words_in(phrases: np.ndarray, length: int) -> np.ndarray:
    """Returns which words stand in the marked phrases of a row: bool, shape (words,)."""
    result = np.zeros(len(phrases) + length - 1, bool)
    for offset in range(length):
        result[offset : offset + len(phrases)] |= phrases
    return result


def row_texts(opened: OpenSource) -> Iterator[tuple[int, str]]:
    """Yields number and text of the rows that can be used.

    Raises:
        LabError: when one is malformed and the source's `bad_rows` says to stop there.
    """
    for number, raw in enumerate(each_row(opened.rows)):
        try:
            row = opened.mapping(raw)
        except InvalidRow as invalid:
            opened.refuse_malformed(number, invalid)
            continue
        yield number, row_text(opened.mapping, raw, row)


def _examples(opened: OpenSource, wanted: list[tuple[int, int, float, int]]) -> Iterator[SharedRow]:
    left = {row: (training_row, share, place) for row, training_row, share, place in wanted}
    for row, text in row_texts(opened) if left else ():
        if row in left:
            training_row, share, place = left.pop(row)
            phrase = " ".join(words(text)[place : place + PHRASE])
            yield SharedRow(row + 1, training_row + 1, share, phrase)
            if not left:
                return
