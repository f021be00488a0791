"""Near duplicates planted in shipped text: what is found, what is found in error, and how long a million rows
take.

    python benchmarks/near_duplicates.py                               # the table
    python benchmarks/near_duplicates.py --rows 100000 --language en   # time and memory of a cleaned copy
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llmlab.config import SourceConfig
from llmlab.data.cleaning import Cleaning, clean
from llmlab.data.near_duplicates import near_duplicates, signature
from llmlab.data.sources import load_rows
from llmlab.data.words import phrase_hashes, word_hashes, words

SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)
NEAR = (0.9, 0.8, 0.6, 0.5)


def corpus(name: str) -> list[str]:
    """Returns texts of 40 words and more: paragraphs of the book, or mails."""
    texts = load_rows(SourceConfig(name=name))["text"]
    parts = texts if "mails" in name else [part for text in texts for part in text.split("\n\n")]
    return [part for part in dict.fromkeys(parts) if len(words(part)) >= 40]


def changed(text: str, share: float, generator: random.Random, vocabulary: list[str]) -> str:
    """Returns a text with a share of its words replaced by other words of the corpus."""
    parts = text.split()
    for place in generator.sample(range(len(parts)), round(share * len(parts))):
        parts[place] = generator.choice(vocabulary)
    return " ".join(parts)


def pairs_of(texts: list[str]) -> list[set[int]]:
    """Returns the set of word pairs of each text."""
    return [set(phrase_hashes(word_hashes(text), 2).tolist()) for text in texts]


def table(name: str, copies: int, seed: int) -> Iterator[str]:
    """Yields lines: what share of the planted copies is found at each likeness, and how right that is."""
    generator = random.Random(seed)
    texts = corpus(name)
    vocabulary = " ".join(texts).split()
    clean_count, planted = len(texts), {}
    for share in SHARES:
        for original in generator.sample(range(clean_count), copies):
            planted[len(texts)] = (original, share)
            texts.append(changed(texts[original], share, generator, vocabulary))
    signatures = np.stack([signature(word_hashes(text)) for text in texts])
    sets = pairs_of(texts)
    sizes = np.array([len(words(text)) for text in texts])
    yield f"{name}: {clean_count:,} texts, {copies} copies at each share of changed words"
    for near in NEAR:
        order = np.lexsort((np.arange(len(texts)), -sizes))
        found = near_duplicates(signatures, order, near)
        out = set(found) | {one.kept for one in found.values()}
        rates = [
            np.mean([place in out for place, (_, of) in planted.items() if of == share]) for share in SHARES
        ]
        exact = {place: exact_likeness(sets[place], sets[one.kept]) for place, one in found.items()}
        above = sum(value >= near for value in exact.values())
        far = sum(value < near - 0.1 for value in exact.values())
        alike = [
            place
            for place, (original, _) in planted.items()
            if exact_likeness(sets[place], sets[original]) >= near
        ]
        recall = np.mean([place in out for place in alike]) if alike else float("nan")
        order = np.lexsort((np.arange(clean_count), -sizes[:clean_count]))
        alone = near_duplicates(signatures[:clean_count], order, near)
        wrong = sum(exact_likeness(sets[place], sets[one.kept]) < near for place, one in alone.items())
        shares = " ".join(f"{share:.0%}:{rate:.0%}" for share, rate in zip(SHARES, rates, strict=True))
        precision = above / max(1, len(found))
        yield (
            f"  near {near}: found {shares} | recall {recall:.1%} of {len(alike)} | precision {precision:.1%}"
            f" of {len(found)}, {far} off by over 0.1 | clean text: {len(alone)} found, {wrong} below {near}"
        )


def exact_likeness(one: set[int], other: set[int]) -> float:
    """Returns the Jaccard index."""
    return len(one & other) / len(one | other)


def timed(rows: int, cleaning: Cleaning) -> Iterator[str]:
    """Yields how long a cleaned copy of so many rows takes: mails and paragraphs, each row changed anew."""
    generator = random.Random(1)
    texts = corpus("llmlab:moby-dick") + corpus("llmlab:spam-mails")
    vocabulary = " ".join(texts).split()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        with open(file, "w", encoding="utf-8") as written:
            for _ in range(rows):
                text = changed(generator.choice(texts), 0.5, generator, vocabulary)
                written.write(json.dumps({"text": text}) + "\n")
        size = file.stat().st_size
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin, processor = time.perf_counter(), time.process_time()
        report = clean(SourceConfig(name=str(file), streaming=True), Path(folder, "out.jsonl"), cleaning)
        seconds, processor = time.perf_counter() - begin, time.process_time() - processor
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    yield (
        f"{rows:,} rows, {size / 1e6:.0f} MB, {report.kept:,} kept: {seconds:.1f} s,"
        f" {processor:.1f} s of the processor, {processor / rows * 1e6 / 60:.1f} minutes for a million;"
        f" peak memory grew by {grown:.0f} MiB"
    )


def main() -> None:
    """Prints the table, or the time of some rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--language", action="append", default=[])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--against", action="append", default=[])
    parser.add_argument("--copies", type=int, default=200)
    asked = parser.parse_args()
    if asked.rows:
        against = tuple(SourceConfig(name=name) for name in asked.against)
        lines = timed(
            asked.rows,
            Cleaning(against=against, languages=tuple(asked.language), processes=asked.processes),
        )
    else:
        names = ("llmlab:moby-dick", "llmlab:spam-mails")
        lines = (line for name in names for line in table(name, asked.copies, seed=3))
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
