"""Words, languages and near duplicates of the rows of a source, as they are read."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np

from llmlab.data.language import language_of
from llmlab.data.near_duplicates import PERMUTATIONS, near_duplicates, signature
from llmlab.data.words import word_hashes

COMPARED = 10_000  # rows in which near duplicates are looked for
MEASURED = 1_000  # texts at least whose words and language are told, where there are so many
NEAR = 0.8
PERCENTILES = (5, 50, 95, 100)


@dataclass(frozen=True)
class TextProfile:
    """What the texts of a source are like.

    Attributes:
        measured: texts whose words and languages were told, evenly spread.
        words: percentile -> words of a text.
        languages: language -> texts, the most frequent first; "unknown" where it cannot be told.
        compared: rows in which near duplicates were looked for: the first ones.
        near_duplicates: of them are nearly the same as another one that would be kept.
    """

    measured: int
    words: dict[str, int]
    languages: dict[str, int]
    compared: int
    near_duplicates: int


class Profiler:
    """Takes texts one by one; holds at most `2 * MEASURED` of them and `COMPARED` signatures."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._stride, self._seen = 1, 0
        self._signatures: list[np.ndarray] = []
        self._sizes = array("q")

    def add(self, text: str) -> None:
        """Takes the text of the next row."""
        if self._seen % self._stride == 0:
            self._texts.append(text)
            if len(self._texts) > 2 * MEASURED:
                self._texts = self._texts[::2]
                self._stride *= 2
        self._seen += 1
        if len(self._signatures) < COMPARED and len(hashes := word_hashes(text)):
            self._signatures.append(signature(hashes))
            self._sizes.append(len(hashes))

    def result(self) -> TextProfile:
        """Returns what the texts were like."""
        counts = [len(word_hashes(text)) for text in self._texts]
        languages = Counter(language_of(text) for text in self._texts)
        alike: dict[int, object] = {}
        if self._signatures:
            signatures = np.stack(self._signatures).reshape(-1, PERMUTATIONS)
            order = np.lexsort((np.arange(len(signatures)), -np.array(self._sizes)))
            alike = dict(near_duplicates(signatures, order, NEAR))
        return TextProfile(
            len(self._texts),
            {str(p): int(np.percentile(counts, p, method="higher")) for p in PERCENTILES} if counts else {},
            dict(sorted(languages.items(), key=lambda item: (-item[1], item[0]))),
            len(self._signatures),
            len(alike),
        )
