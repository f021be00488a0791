"""What a person is shown: answers of an evaluation one by one, or two models' answers to one prompt; without
names, in an order that is drawn for each assessor. No torch.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llmlab.errors import LabError
from llmlab.evaluation.folder import EvaluationFolder

Place = tuple[str, int, int]
NOT_SAID = ("text", "conversation", "preference")  # measures whose rows hold no answer that a model gave


@dataclass(frozen=True)
class GivenAnswer:
    """An answer of a model.

    Attributes:
        key: of it in the evaluation.
        model: that gave it.
        place: its source, row and part: what it answers.
        group: of rows that belong together; None where the row stands for itself.
        prompt: a text, or messages.
        answer: its text.
        reference: the right answer, "" where there is none.
    """

    key: str
    model: str
    place: Place
    group: str | None
    prompt: Any
    answer: str
    reference: str


@dataclass(frozen=True)
class Item:
    """One thing to judge.

    Attributes:
        key: of it; the same in every order.
        answers: to one prompt, as they are shown: one text that one or several models gave, or two that are
            compared.
    """

    key: str
    answers: tuple[GivenAnswer, ...]

    @property
    def prompt(self) -> Any:
        """What was asked: a text, or messages."""
        return self.answers[0].prompt

    @property
    def reference(self) -> str:
        """The right answer, "" where there is none."""
        return self.answers[0].reference


def given_answers(folder: EvaluationFolder) -> list[GivenAnswer]:
    """Returns the answers of an evaluation that a person can judge, each once.

    Raises:
        LabError: when there are none.
    """
    answers: dict[tuple[str, Place], GivenAnswer] = {}
    for row in folder.answers():
        said = row.get("answer")
        if row["measure"] in NOT_SAID or not isinstance(said, str) or not row.get("prompt"):
            continue
        place = (row["source"], row["row"], int(row.get("part") or 0))
        reference = row.get("reference")
        one = GivenAnswer(
            row["key"],
            row["model"],
            place,
            row.get("group"),
            row["prompt"],
            said,
            reference if isinstance(reference, str) else "",
        )
        answers.setdefault((one.model, place), one)
    if not answers:
        raise LabError(
            "has no answers that a person could judge",
            where=str(folder.path),
            remedy="evaluate rows that are answered: prompts and completions, or --by generate",
        )
    return list(answers.values())


def single_items(answers: Iterable[GivenAnswer]) -> list[Item]:
    """Returns answers to be judged one by one; the same answer to the same prompt, by several models or in
    several rows, is judged once.
    """
    same: dict[str, list[GivenAnswer]] = {}
    for one in answers:
        same.setdefault(_key(one.prompt, one.answer), []).append(one)
    return [Item(key, tuple(each)) for key, each in same.items()]


def pair_items(answers: Sequence[GivenAnswer]) -> tuple[list[Item], list[Item]]:
    """Returns the pairs of answers of two models to the same prompts, and those whose answers are the same.

    Raises:
        LabError: when there are not two models, or no prompt that both have answered.
    """
    models = list(dict.fromkeys(one.model for one in answers))
    if len(models) != 2:
        raise LabError(
            f"has answers of {len(models)} model{'s' if len(models) > 1 else ''}, and a comparison needs two",
            remedy="leave out --pairs; or evaluate with --against OTHER",
        )
    by_place: dict[Place, dict[str, GivenAnswer]] = {}
    for one in answers:
        by_place.setdefault(one.place, {})[one.model] = one
    pairs = [tuple(both[name] for name in models) for both in by_place.values() if len(both) == 2]
    if not pairs:
        raise LabError("the two models have no prompt in common", remedy="evaluate both on the same rows")
    different: dict[str, Item] = {}
    same: list[Item] = []
    for one, other in pairs:
        item = Item(_key(one.prompt, one.answer, other.answer), (one, other))
        if one.answer == other.answer:
            same.append(item)
        else:
            different.setdefault(item.key, item)
    return list(different.values()), same


def pairs_if_any(answers: Sequence[GivenAnswer]) -> tuple[list[Item], list[Item]]:
    """Returns what `pair_items` does, nothing where there is nothing to compare."""
    try:
        return pair_items(answers)
    except LabError:
        return [], []


def in_drawn_order(items: Iterable[Item], seed: int, assessor: str) -> list[Item]:
    """Returns items in an order of the assessor's own; of two answers, too, which comes first is drawn."""
    drawn = sorted(items, key=lambda item: item.key)
    random.Random(f"{seed}/{assessor}").shuffle(drawn)
    return [_turned(item, seed, assessor) if _is_pair(item) else item for item in drawn]


def _is_pair(item: Item) -> bool:
    return len({one.answer for one in item.answers}) > 1


def _turned(item: Item, seed: int, assessor: str) -> Item:
    turned = random.Random(f"{seed}/{assessor}/{item.key}").random() < 0.5
    return Item(item.key, item.answers[::-1]) if turned else item


def _key(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()
