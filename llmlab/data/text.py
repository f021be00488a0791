"""Long texts as tokens, in pieces: the tokens are those of the whole text, memory is that of a piece.

Pieces overlap. Pre-tokenizers read from left to right, so that behind a place where two pieces begin a word
alike all further words are alike too: there one piece is left for the next. A tokenizer without words (or a
text of a single one) has no such place: then the pieces grow until there is one, at last to the whole text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 200_000  # characters that are tokenised at once
OVERLAP = 2_000  # characters that two pieces share
ALIKE = 4  # words in a row that two pieces must have in common
Word = tuple[int, tuple[int, ...]]  # the place in the text where it begins, and its tokens


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, piece: int = PIECE, overlap: int = OVERLAP
) -> list[np.ndarray]:
    """Returns the tokens of each text, without special tokens around it, as int32."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [
            np.array(ids, np.int32)
            for ids in tokenizer([str(text) for text in texts], add_special_tokens=False)["input_ids"]
        ]
    backend.no_truncation()
    backend.no_padding()
    short = [index for index, text in enumerate(texts) if len(text) <= piece + overlap]
    encoded: list[Any] = [None] * len(texts)
    # the same tokens without the lists that nobody reads
    for index, encoding in zip(
        short,
        backend.encode_batch_fast([str(texts[i]) for i in short], add_special_tokens=False),
        strict=True,
    ):
        encoded[index] = np.array(encoding.ids, np.int32)
    return [
        _encode_long(backend, str(text), piece, overlap) if ids is None else ids
        for text, ids in zip(texts, encoded, strict=True)
    ]


def _encode_long(backend: Any, text: str, piece: int, overlap: int) -> np.ndarray:
    parts: list[np.ndarray] = []
    start, size = 0, piece  # of the piece at hand
    words = _words(backend, text, 0, size + overlap)
    taken = 0  # words of it that the piece before has given
    while start + size < len(text):
        end = start + size
        following = _words(backend, text, end, end + piece + overlap)
        meeting = _meeting(words, taken, following)
        if meeting is None:
            size *= 2
            first = words[taken][0] if words else start
            words = _words(backend, text, start, start + size + overlap)
            taken = next((index for index, word in enumerate(words) if word[0] == first), 0) if taken else 0
            continue
        here, there = meeting
        parts.append(_ids(words[taken:here]))
        words, taken, start, size = following, there, end, piece
    return np.concatenate([*parts, _ids(words[taken:])])


def _words(backend: Any, text: str, start: int, end: int) -> list[Word]:
    encoding = backend.encode(text[start:end], add_special_tokens=False)
    words: list[Word] = []
    last: Any = None
    for token, number, (place, _) in zip(encoding.ids, encoding.word_ids, encoding.offsets, strict=True):
        if words and number is not None and number == last:
            words[-1] = (words[-1][0], (*words[-1][1], token))
        else:
            words.append((start + place, (token,)))
        last = number
    return words


def _meeting(words: list[Word], taken: int, following: list[Word]) -> tuple[int, int] | None:
    """Returns the first word of both from which on they agree, as its number in each."""
    places = {word[0]: index for index, word in enumerate(following)}
    begin = following[0][0] if following else 0
    for here in range(taken, len(words) - ALIKE + 1):
        there = places.get(words[here][0]) if words[here][0] > begin else None
        if there and words[here : here + ALIKE] == following[there : there + ALIKE]:
            return here, there
    return None


def _ids(words: list[Word]) -> np.ndarray:
    return np.array([token for _, tokens in words for token in tokens], np.int32)
