"""The words of a text as hashes, and phrases of them: what near duplicates and overlaps are found by.

A word is what Brown et al. 2020 (appendix C) compare, lower case and without punctuation; in scripts that
put no spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) each character is one. Hashes have
64 bits and are the same in every process.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import numpy as np
import xxhash

from llmlab.data.columns import as_text, at, named_in
from llmlab.data.mapping import RowMapping
from llmlab.data.schemas import InvalidRow, Row

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: a phrase is a polynomial of its words' hashes, modulo 2^64
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # the finalizer of MurmurHash3
_SHIFT = np.uint64(33)


def words(text: str) -> list[str]:
    """Returns the words of a text, lower case and without punctuation."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _WORD.findall(plain.casefold())


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))


def word_hashes(text: str) -> np.ndarray:
    """Returns a hash for each word: uint64, shape (words,)."""
    return np.array([_word_hash(word) for word in words(text)], np.uint64)


def phrase_hashes(hashes: np.ndarray, length: int) -> np.ndarray:
    """Returns a hash for each run of `length` words: uint64, shape (words - length + 1,); empty where the
    text is shorter.

    Args:
        hashes: of the words, as `word_hashes` makes them.
        length: words of a phrase.
    """
    count = len(hashes) - length + 1
    if count < 1:
        return np.empty(0, np.uint64)
    phrases = hashes[:count].copy()
    for offset in range(1, length):
        phrases *= _BASE
        phrases += hashes[offset : offset + count]
    for factor in _MIX:
        phrases ^= phrases >> _SHIFT
        phrases *= factor
    phrases ^= phrases >> _SHIFT
    return phrases


def row_text(mapping: RowMapping, raw: Row, row: Row) -> str:
    """Returns what is compared of a row: its texts without what the lab puts around them.

    Of a prompt with columns in braces these are the columns: its own words stand in every row. Thoughts, tool
    calls and system messages are left out.

    Args:
        mapping: of the source.
        raw: the row as the source has it.
        row: the canonical row.
    """
    if mapping.prompt and (columns := named_in(mapping.prompt)):
        try:
            parts = [as_text(at(raw, column, (str, int, float, list))) for column in columns]
        except InvalidRow:  # a parser made the row of something else
            parts = []
        if parts:
            return "\n".join(parts)
    turns = row.get("messages") or row.get("prompt") or []
    parts = [row.get("text") or ""]
    parts += [str(turn.get("content") or "") for turn in turns if turn.get("role") != "system"]
    if "choices" not in row:
        parts += [row.get(name) or "" for name in ("completion", "chosen", "rejected", "answer")]
    return "\n".join(part for part in parts if part)
