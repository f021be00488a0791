"""From an assessment to preferences: what was judged becomes data to train on."""

from __future__ import annotations

import hashlib
from typing import Any

from llmlab.data.collection import BAD, BETTER, EQUAL, GOOD, Mark
from llmlab.data.schemas import Messages, user
from llmlab.evaluation import assessment
from llmlab.evaluation.assessment import Judgement, Judgements, Mode, assessors, standing_on
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.judged_items import GivenAnswer, Item, given_answers, pairs_if_any, single_items


def marks_of(folder: EvaluationFolder) -> list[Mark]:
    """Returns the judgements of an evaluation as marks, with ids that are the same each time.

    The first category is good, `unsure` says nothing, every other one is bad. Of two answers the better one
    is chosen.

    Raises:
        LabError: when a file cannot be read.
    """
    given = given_answers(folder)
    by_key = {one.key: one for one in given}
    items: dict[Mode, list[Item]] = {"single": single_items(given), "pairs": pairs_if_any(given)[0]}
    marks: dict[str, Mark] = {}
    for name in assessors(folder.path):
        for mode, each in items.items():
            judgements = Judgements.of(folder.path, name, mode)
            for one in standing_on(judgements, each):
                answers = [by_key[key] for key in one.keys]
                mark = _of_pair(one, answers) if mode == "pairs" else _of_single(one, answers, judgements)
                if mark:
                    known = {"made_in": folder.name, "note": one.note}
                    number = _id(folder.name, name, mode, one.item)
                    marks[number] = Mark(**{**mark, **known, "id": number})
    return list(marks.values())


def _of_pair(one: Judgement, answers: list[GivenAnswer]) -> dict[str, Any]:
    if one.verdict == assessment.UNSURE:
        return {}
    chosen, rejected = answers if one.verdict != assessment.SECOND else answers[::-1]
    return {
        "verdict": EQUAL if one.verdict == assessment.EQUAL else BETTER,
        "prompt": _messages(chosen.prompt),
        "chosen": chosen.answer,
        "rejected": rejected.answer,
        "chosen_model": chosen.model,
        "rejected_model": rejected.model,
    }


def _of_single(one: Judgement, answers: list[GivenAnswer], judgements: Judgements) -> dict[str, Any]:
    if one.verdict == assessment.UNSURE or judgements.terms is None:
        return {}
    good = one.verdict == judgements.terms.categories[0]
    text, model = ("chosen", "chosen_model") if good else ("rejected", "rejected_model")
    return {
        "verdict": GOOD if good else BAD,
        "prompt": _messages(answers[0].prompt),
        text: answers[0].answer,
        model: answers[0].model,
    }


def _messages(prompt: Any) -> Messages:
    if isinstance(prompt, str):
        return user(prompt)
    return [{"role": str(turn.get("role")), "content": str(turn.get("content") or "")} for turn in prompt]


def _id(*parts: str) -> str:
    return hashlib.blake2b("/".join(parts).encode(errors="replace"), digest_size=5).hexdigest()
