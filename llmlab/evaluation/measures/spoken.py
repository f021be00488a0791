"""Measures of what a model says: an answer, a label, an answer that a reward scores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmlab.config.rewards import RewardSource
from llmlab.data.prompts import prompt_of
from llmlab.data.schemas import to_messages
from llmlab.data.tokenizer import text_ids
from llmlab.evaluation.answers import generate, prompt_ids
from llmlab.evaluation.items import Item, TaskRow
from llmlab.evaluation.measures.base import Answer, Measure, Prepared
from llmlab.models.identity import known_weights

WITH_REWARD = 256  # tokens of an answer that a reward scores, where nothing else is said


class Generated(Measure):
    """What the model says, right where it is the reference to the letter."""

    name = "answer"

    def prepare(self, rows: Sequence[TaskRow]) -> Prepared:
        """Returns an item a row and repeat."""
        talks = [self.asked(one) for one in rows]
        longest = self.task.max_new_tokens or self.longest([reference for _, reference in talks])
        items = []
        for one, (prompt, reference) in zip(rows, talks, strict=True):
            ids = prompt_ids(self.model, self.tokenizer, prompt)
            more = {"choices": list(one.row["choices"])} if one.row.get("choices") else {}
            for repeat in range(self.reader.repeats):
                settings = {"max_new_tokens": longest, **self.drawn(one.number, repeat)}
                items.append(Item(one.number, repeat, one.group, (ids,), prompt, reference, settings, more))
        return Prepared(items, {})

    def asked(self, one: TaskRow) -> tuple[Any, str]:
        """Returns the prompt of a row and its reference."""
        talk = to_messages(one.row)
        return talk[:-1], talk[-1]["content"].strip()

    def longest(self, references: Sequence[str]) -> int:
        """Returns the tokens of the longest reference, and two to end it."""
        ids = (text_ids(self.tokenizer, text, add_special_tokens=False) for text in references)
        return max(map(len, ids)) + 2

    def drawn(self, row: int, repeat: int) -> dict[str, Any]:
        """Returns what a sampled answer depends on; nothing of a greedy one."""
        if self.reader.sampling.temperature == 0:
            return {}
        return {**vars(self.reader.sampling), "row": row, "repeat": repeat}

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Returns what was said to each prompt."""
        answered = generate(
            self.model,
            self.tokenizer,
            [list(item.ids[0]) for item in items],
            items[0].settings["max_new_tokens"],
            self.reader.sampling,
            [(item.row, item.part) for item in items],
        )
        texts = [one.text for one in answered]
        return [
            {
                "answer": text,
                "score": score,
                "log_prob": one.log_prob,
                "tokens": one.tokens,
                **({"choices": item.more["choices"]} if "choices" in item.more else {}),
            }
            for item, one, text, score in zip(items, answered, texts, self.scores(items, texts), strict=True)
        ]

    def scores(self, items: Sequence[Item], texts: list[str]) -> list[float]:
        """Returns 1 for each answer that is right, else 0."""
        return [float(text == item.reference) for item, text in zip(items, texts, strict=True)]


class SaidLabels(Generated):
    """Which of the label words the model says; whatever else it says is none of them."""

    name = "label"

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Returns the word that each answer is, `said` being what stood there; "" for none."""
        answers = super().answer(items)
        for item, one in zip(items, answers, strict=True):
            said = one["answer"].strip().rstrip(".").lower()
            word = next((word for word in one["choices"] if word.lower() == said), "")
            one |= {"said": one["answer"], "answer": word, "score": float(word == item.reference)}
        return answers


class Rewarded(Generated):
    """What the model says, worth what the rewards say."""

    name = "reward"

    def asked(self, one: TaskRow) -> tuple[Any, str]:
        """Returns the prompt of a row of any shape, and what a reward may compare with."""
        row = one.row
        return prompt_of(row), row.get("answer") or row.get("completion") or row.get("chosen") or ""

    def longest(self, references: Sequence[str]) -> int:
        """Returns the tokens of an answer."""
        return WITH_REWARD

    def drawn(self, row: int, repeat: int) -> dict[str, Any]:
        """Returns the draw and the rewards."""
        return {**super().drawn(row, repeat), "rewards": [reward_identity(one) for one in self.task.rewards]}

    def scores(self, items: Sequence[Item], texts: list[str]) -> list[float]:
        """Returns the reward of each answer."""
        assert self.reader.reward is not None
        references = [item.reference or "" for item in items]
        values = self.reader.reward([item.prompt for item in items], texts, references)
        return [float(value) for value in values]


def reward_identity(reward: RewardSource) -> list[str]:
    """Returns what the values of a reward depend on: its line, and the weights or the code behind it."""
    if reward.kind == "model":
        return [reward.line(), known_weights(reward.name)]
    file = Path(*reward.name.partition(":")[0].split(".")).with_suffix(".py")
    if reward.kind == "function" and file.is_file():
        return [reward.line(), hashlib.sha256(file.read_bytes()).hexdigest()]
    return [reward.line()]
