"""Small exact tasks: questions whose answers can be checked, for learning to follow instructions in minutes.

Every question has one correct answer and one wrong answer, both computed here. Training and held-out
questions never overlap: a question belongs to the held-out side by a hash of its text.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    return f"Add {a} and {b}.", str(a + b)


def _subtract(rng: random.Random) -> tuple[str, str]:
    a, b = sorted((rng.randint(0, 20), rng.randint(0, 20)), reverse=True)
    return f"Subtract {b} from {a}.", str(a - b)


def _next(rng: random.Random) -> tuple[str, str]:
    a = rng.randint(0, 998)
    return f"Which number comes after {a}?", str(a + 1)


def _larger(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(100), 2)
    return f"Which is larger, {a} or {b}?", str(max(a, b))


def _copy(rng: random.Random) -> tuple[str, str]:
    items = [rng.choice(LETTERS) for _ in range(rng.randint(2, 4))]
    return f"Copy: {' '.join(items)}", " ".join(items)


def _reverse(rng: random.Random) -> tuple[str, str]:
    items = [rng.choice(LETTERS) for _ in range(rng.randint(2, 4))]
    return f"Reverse: {' '.join(items)}", " ".join(reversed(items))


def _count(rng: random.Random) -> tuple[str, str]:
    letter = rng.choice(LETTERS)
    return f"Count: {' '.join([letter] * (n := rng.randint(1, 9)))}", str(n)


def _last(rng: random.Random) -> tuple[str, str]:
    items = [rng.choice(LETTERS) for _ in range(rng.randint(2, 5))]
    return f"Last letter of: {' '.join(items)}", items[-1]


TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "add": _add,
    "subtract": _subtract,
    "next": _next,
    "larger": _larger,
    "copy": _copy,
    "reverse": _reverse,
    "count": _count,
    "last": _last,
}


def wrong_answer(task: str, question: str, answer: str) -> str:
    """Returns the typical mistake of someone who did not look twice;
    always different from the right answer.
    """
    words = question.rstrip(".?").split()
    match task:
        case "copy":
            return answer[:-2]  # stops one letter early
        case "reverse":
            forwards = question.removeprefix("Reverse: ")
            return forwards if forwards != answer else answer[:-2]
        case "last":
            return words[3] if words[3] != answer else words[-2] if words[-2] != answer else "none"
        case "larger":
            return next(word for word in (words[3].rstrip(","), words[5]) if word != answer)
    return str(int(answer) + 1)  # off by one


def is_held_out(question: str) -> bool:
    """Returns whether a question belongs to the held-out fifth; decided by its text alone."""
    return hashlib.sha256(question.encode()).digest()[0] < 52


def questions(seed: int, *, held_out: bool) -> Iterator[tuple[str, str, str]]:
    """Yields (task, question, answer) without end, tasks in turn, from one side of the split."""
    rng = random.Random(f"{seed}-{held_out}")
    while True:
        for task, make in TASKS.items():
            question, answer = make(rng)
            while is_held_out(question) != held_out:
                question, answer = make(rng)
            yield task, question, answer


def distinct_questions(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Returns `count` different held-out questions."""
    distinct: dict[str, tuple[str, str, str]] = {}
    for row in questions(seed, held_out=True):
        distinct.setdefault(row[1], row)
        if len(distinct) == count:
            return list(distinct.values())
    raise AssertionError("unreachable: the stream is endless")
