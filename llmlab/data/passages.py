"""Questions on short passages of Moby-Dick: the passage states the answer, or it does not say.

A passage is a clause or up to three sentences. What it states is a person, a place, a time of day or a number
of things. Where it states it, the word is replaced by another one of its kind, drawn at random, as in Longpre
et al. 2021 ("Entity-Based Knowledge Conflicts in Question Answering"): only the passage says what is right,
not the book, and no answer is likelier than others. What an answer is worth is known: it was made so.

Training and test passages are of different chapters.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmlab.config.judges import ABSTENTION
from llmlab.data.schemas import Row

PERSONS = (
    "Ahab", "Bildad", "Daggoo", "Elijah", "Fedallah", "Flask", "Ishmael", "Jonah", "Peleg", "Pip", "Queequeg",
    "Radney", "Starbuck", "Steelkilt", "Stubb", "Tashtego",
)  # fmt: skip
PLACES = (
    "Africa", "America", "China", "Egypt", "England", "France", "Greenland", "Holland", "India", "Japan",
    "Java", "Lima", "London", "Nantucket", "Rome", "Spain",
)  # fmt: skip
TIMES = ("dawn", "evening", "midnight", "morning", "noon", "sunrise", "sunset", "twilight")
NUMBERS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "fifteen",
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty",
)  # fmt: skip
KINDS = {"person": PERSONS, "place": PLACES, "time": TIMES, "number": NUMBERS}
QUESTIONS = {
    "person": "Who is named here?",
    "place": "Which place is named here?",
    "time": "Which time of day is named here?",
}
NEUTRAL = ("I", "Captain", "Mr", "God", "Lord", "Heaven", "Pequod", "Death")  # neither persons nor places
NO_THINGS = ("times", "thirds", "fifths", "tenths", "others", "less", "parts")  # "three times as far"
QUOTES = re.compile(r"[“”\"()\[\]*_]|--")
SHORTEST, LONGEST = 40, 200  # characters of a passage
STATED = 2 / 3  # of the rows
OF_ABSTENTIONS = 0.2  # of the claims on what a passage states


@dataclass(frozen=True)
class Passage:
    """A passage as the book has it.

    Attributes:
        place: chapter and paragraph.
        text: its sentences.
        states: kind of fact -> its word, where there is one and only one.
        lacks: kinds of which it names none.
        counted: of the number, the things that it counts; "" without a number.
    """

    place: str
    text: str
    states: dict[str, str]
    lacks: tuple[str, ...]
    counted: str


def is_test_chapter(chapter: str) -> bool:
    """Returns whether a chapter's passages are for testing: three tenths, decided by its name alone."""
    return hashlib.sha256(f"chapter {chapter}".encode()).digest()[0] < 77


def passages(chapters: Sequence[Row]) -> list[Passage]:
    """Returns the passages of which it is certain what they state and what they do not.

    A capital letter within a sentence is a name: a passage with one that is in no list is left out, for
    nobody knows whether it is a person or a place.

    Args:
        chapters: rows of `chapter` and `text`.
    """
    whole = "\n".join(one["text"] for one in chapters)
    small = set(re.findall(r"\b[a-z]+\b", whole))
    found = []
    for chapter in chapters:
        for number, paragraph in enumerate(chapter["text"].split("\n\n")):
            place = f"{chapter['chapter']}-{number + 1}"
            found += [_read(place, text) for text in _pieces(paragraph) if _is_plain(text, small)]
    return found


def _pieces(paragraph: str) -> Iterator[str]:
    """Yields clauses, sentences, and runs of two and three of them that are neither short nor long, without
    quotation marks.
    """
    seen: set[str] = set()
    for ends in (".!?", ".!?;"):
        parts = re.split(rf"(?<=[{ends}])\s+", " ".join(paragraph.split()))
        for size in (3, 2, 1):
            for number in range(len(parts) - size + 1):
                piece = " ".join(parts[number : number + size]).rstrip(";")
                if SHORTEST <= len(piece) <= LONGEST and piece not in seen and not QUOTES.search(piece):
                    seen.add(piece)
                    yield piece


def _is_plain(text: str, small: set[str]) -> bool:
    """Returns whether every capitalised word is a known name, a neutral word, or a small word that begins a
    sentence.
    """
    known = {*PERSONS, *PLACES, *NEUTRAL}
    for match in re.finditer(r"\b[A-Z]\w*", text):
        begins = match.start() == 0 or text[match.start() - 2] in ".!?"
        if match[0] not in known and not (begins and match[0].lower() in small):
            return False
    return True


def _read(place: str, text: str) -> Passage:
    states, lacks = {}, []
    for kind, words in KINDS.items():
        named = re.findall(rf"\b({'|'.join(words)})\b", text, re.IGNORECASE)
        if not named:
            lacks.append(kind)
        elif len(named) == 1 and named[0] in words:
            states[kind] = named[0]
    things = ""
    if number := states.pop("number", ""):
        counted = re.search(rf"(?<!-)\b{number} ([a-z]{{3,}}s)\b(?!')", text)
        larger = re.search(r"\b(hundreds?|thousands?|dozen|score|million)\b", text, re.IGNORECASE)
        if counted and not larger and text.count(counted[1]) == 1 and counted[1] not in NO_THINGS:
            states["number"], things = number, counted[1]
    return Passage(place, text, states, tuple(lacks), things)


def shipped(chapters: Sequence[Row], split: str) -> bytes:
    """Returns the content of the shipped file of a split, "train" or "test": gzipped lines of JSON."""
    made = rows(chapters, test=split == "test", per_kind=150 if split == "test" else 1500)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    return gzip.compress(lines.encode(), mtime=0)


def rows(chapters: Sequence[Row], *, test: bool, per_kind: int, seed: int = 0) -> list[Row]:
    """Returns questions on passages, as many of each kind: `passage`, `question`, `answer`, `rejected`,
    `claim`, `verdict`, `kind`, `place`.

    `answer` is right and `rejected` is not: another word than the passage's, or a word where it has none, or
    that it does not say what it says. So that sentence, and words, are chosen as often as they are rejected:
    pairs of which one side is always a word teach to say none.
    `claim` is an answer of which `verdict` says what it is worth. `place` is chapter and paragraph: rows of
    one place share their text.

    Args:
        chapters: rows of `chapter` and `text`.
        test: whether of the test chapters, or of the others.
        per_kind: rows of each kind, of which two thirds are stated.
        seed: of what is drawn.
    """
    generator, which = random.Random(f"{seed}-{test}"), random.Random(f"{seed}-{test}-rejected")
    of_part = [one for one in passages(chapters) if is_test_chapter(one.place.split("-")[0]) == test]
    things = sorted({one.counted for one in of_part if one.counted})
    made: list[Row] = []
    for kind in KINDS:
        stated = [one for one in of_part if kind in one.states]
        for passage in _drawn(stated, round(per_kind * STATED), generator):
            made.append(_stated(passage, kind, generator))
            if which.random() < 1 / 2:
                made[-1]["rejected"] = ABSTENTION
        silent = [one for one in of_part if kind in one.lacks]
        if kind == "number":  # as many count other things than those that are asked for
            silent = [*generator.sample(silent, min(len(silent), len(stated))), *stated]
        for passage in _drawn(silent, per_kind - round(per_kind * STATED), generator):
            made.append(_silent(passage, kind, things, generator))
    generator.shuffle(made)
    return made


def _drawn(found: Sequence[Passage], count: int, generator: random.Random) -> list[Passage]:
    """Returns so many passages, each as often as the others, but for one time."""
    drawn: list[Passage] = []
    while len(drawn) < count:
        drawn += generator.sample(found, min(len(found), count - len(drawn)))
    return drawn


def _stated(passage: Passage, kind: str, generator: random.Random) -> Row:
    before = passage.states[kind]
    answer = generator.choice(KINDS[kind])
    text = re.sub(rf"\b{before}\b", answer, passage.text)
    wrong = generator.choice([word for word in KINDS[kind] if word != answer])
    question = QUESTIONS.get(kind) or f"How many {passage.counted}?"
    drawn = generator.random()
    claims = {"abstained": ABSTENTION, "supported": answer, "contradicted": wrong}
    share = (1 - OF_ABSTENTIONS) / 2
    verdict = "supported" if drawn < share else "contradicted" if drawn < 2 * share else "abstained"
    return _row(passage, text, kind, question, (answer, wrong), (claims[verdict], verdict))


def _silent(passage: Passage, kind: str, things: Sequence[str], generator: random.Random) -> Row:
    invented = generator.choice(KINDS[kind])
    absent = [thing for thing in things if thing[:-1] not in passage.text]
    question = QUESTIONS.get(kind) or f"How many {generator.choice(absent)}?"
    unsupported = generator.random() < 3 / 4
    claim = (invented, "unsupported") if unsupported else (ABSTENTION, "abstained")
    return _row(passage, passage.text, kind, question, (ABSTENTION, invented), claim)


def _row(
    passage: Passage, text: str, kind: str, question: str, answers: tuple[str, str], claim: tuple[str, str]
) -> Row:
    return {
        "passage": text,
        "question": question,
        "answer": answers[0],
        "rejected": answers[1],
        "claim": claim[0],
        "verdict": claim[1],
        "kind": kind,
        "place": passage.place,
    }


if __name__ == "__main__":  # python -m llmlab.data.passages writes the files that ship
    from importlib import resources
    from pathlib import Path

    corpus = Path(str(resources.files("llmlab.data") / "corpus"))
    book = [json.loads(line) for line in (corpus / "moby-dick.jsonl").read_text("utf-8").splitlines()]
    for part in ("train", "test"):
        (corpus / f"passages.{part}.jsonl.gz").write_bytes(shipped(book, part))
