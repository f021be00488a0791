"""Rows that columns and a prompt alone do not describe: multiple choice, scores, solutions, message trees."""

from __future__ import annotations

import hashlib
import re
import string
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from llmlab.data.columns import at
from llmlab.data.schemas import InvalidRow, Row, choice, user

LETTERS = string.ascii_uppercase
OF_MMLU_PRO = LETTERS[:10]
SUPPORTED = ("supported", "hallucinated")
# of a subset of HaluEval: what is known, what is asked, and the right and the made-up answer
HALUEVAL = {
    "qa": ("knowledge", "question", "right_answer", "hallucinated_answer"),
    "dialogue": ("knowledge", "dialogue_history", "right_response", "hallucinated_response"),
    "summarization": ("document", None, "right_summary", "hallucinated_summary"),
}


def mmlu(row: Row) -> Row:
    """Returns an MMLU row, whose answer is the number of a choice, as a question answered by a letter."""
    return _letters(at(row, "question"), at(row, "choices", list), at(row, "answer", int))


def mmlu_pro(row: Row) -> Row:
    """Returns an MMLU-Pro row, whose answer is a letter from A to J."""
    letter = at(row, "answer")
    if len(letter) != 1 or letter not in OF_MMLU_PRO:
        raise InvalidRow(f"answer {letter!r} is not a letter from A to J", malformed=True)
    return _letters(at(row, "question"), at(row, "options", list), LETTERS.index(letter))


def truthful_qa(row: Row) -> Row:
    """Returns a TruthfulQA row (Lin et al. 2022, MC1: one choice is true) as a question answered by a letter.

    The dataset has the true choice first in every row; here they stand in an order that their texts give.
    """
    choices, labels = at(row, "mc1_targets.choices", list), at(row, "mc1_targets.labels", list)
    if len(choices) != len(labels) or labels.count(1) != 1:
        raise InvalidRow("mc1_targets has not one true choice", malformed=True)
    question = at(row, "question")
    order = sorted(range(len(choices)), key=lambda place: _drawn(question, str(choices[place])))
    return _letters(question, [choices[place] for place in order], order.index(labels.index(1)))


def halueval(row: Row) -> Row:
    """Returns a HaluEval row (Li et al. 2023) as a text, an answer, and whether the text supports it: of the
    two answers one, which their texts give.
    """
    known, asked, right, made_up = next(
        (columns for columns in HALUEVAL.values() if columns[2] in row), HALUEVAL["qa"]
    )
    text, answers = at(row, known), (at(row, right), at(row, made_up))
    question = f"Question: {at(row, asked)}\n" if asked == "question" else ""
    question = f"Conversation: {at(row, asked)}\n" if asked == "dialogue_history" else question
    shown = int(_drawn(text, *answers)[0], 16) % 2
    prompt = (
        "Does this text support the answer, or is the answer hallucinated?\n\n"
        f"Text: {text.strip()}\n{question}Answer: {answers[shown].strip()}\nVerdict:"
    )
    return choice(user(prompt), SUPPORTED[shown], SUPPORTED)


def _drawn(*texts: str) -> str:
    """Returns hexadecimal digits that look drawn and are always the same for the same texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _letters(question: str, options: list[Any], label: int) -> Row:
    if not 0 <= label < len(options) or len(options) > len(LETTERS):
        raise InvalidRow(f"answer {label} is none of {len(options)} choices", malformed=True)
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    prompt = "\n".join([question.strip(), *lines, "Answer:"])
    return choice(user(prompt), LETTERS[label], LETTERS[: len(options)])


def finance_task(row: Row) -> Row:
    """Returns a row of the AdaptLLM tasks: a closed set of options where there is one, else a free answer."""
    question = at(row, "input").rstrip()
    if row.get("options"):
        label, options = at(row, "gold_index", int), at(row, "options", list)
        if not 0 <= label < len(options):
            raise InvalidRow(f"gold_index {label} is none of {len(options)} options", malformed=True)
        return choice(
            user(question), str(options[label]).strip(), [str(option).strip() for option in options]
        )
    return {"prompt": user(question), "completion": str(at(row, "label", (str, int, float))).strip()}


def similarity(row: Row) -> Row:
    """Returns an STS-B row as a score in words: 0 to 5 with one decimal."""
    score = at(row, "label", (float, int))
    if score < 0:
        raise InvalidRow("has no label")
    prompt = (
        "How similar in meaning are these sentences, from 0.0 (nothing in common) to 5.0 (the same)?\n\n"
        f"Sentence 1: {at(row, 'sentence1')}\nSentence 2: {at(row, 'sentence2')}\nSimilarity:"
    )
    return {"prompt": user(prompt), "completion": f"{score:.1f}"}


def signed_sentiment(row: Row) -> Row:
    """Returns a FiQA row, whose sentiment is a score from -1 to 1: below -0.1 negative,
    above 0.1 positive.
    """
    score = at(row, "score", (float, int))
    words = ("negative", "neutral", "positive")
    word = words[0] if score < -0.1 else words[2] if score > 0.1 else words[1]
    prompt = (
        f"What is the sentiment of this financial statement?\n\nStatement: {at(row, 'sentence')}\nSentiment:"
    )
    return choice(user(prompt), word, words)


def finance_math(row: Row) -> Row:
    """Returns a FinanceMath row: its tables before the question,
    its Python solution as the answer to learn.
    """
    tables = "\n\n".join(str(table) for table in row.get("tables") or [])
    question = f"{tables}\n\n{at(row, 'question')}".strip()
    if not row.get("python_solution"):
        raise InvalidRow("has no solution (the test split keeps its own)")
    return {"prompt": user(question), "completion": at(row, "python_solution")}


def finance_math_answer(row: Row) -> Row:
    """Returns a FinanceMath row with its number as the right answer."""
    tables = "\n\n".join(str(table) for table in row.get("tables") or [])
    if row.get("ground_truth") is None:
        raise InvalidRow("has no answer (the test split keeps its own)")
    return {
        "prompt": user(f"{tables}\n\n{at(row, 'question')}".strip()),
        "answer": f"{at(row, 'ground_truth', (float, int)):g}",
    }


def gsm8k_answer(row: Row) -> Row:
    """Returns a GSM8K row with the number after `####` as the right answer."""
    _, mark, number = at(row, "answer").rpartition("####")
    if not mark:
        raise InvalidRow("no answer after ####", malformed=True)
    return {"prompt": user(at(row, "question")), "answer": number.strip().replace(",", "")}


_BYTES = re.compile(r"^b(['\"])(.*)\1$", re.DOTALL)


def math_dataset(row: Row) -> Row:
    """Returns a row of the DeepMind mathematics dataset, whose texts are printed bytes: `b'Solve ...\\n'`."""

    def clean(name: str) -> str:
        text = at(row, name)
        match = _BYTES.match(text)
        return (match[2].replace("\\n", "\n").replace("\\'", "'") if match else text).strip()

    return {"prompt": user(clean("question")), "completion": clean("answer")}


def math_dataset_answer(row: Row) -> Row:
    """Returns the same with the right answer for rewards."""
    parsed = math_dataset(row)
    return {"prompt": parsed["prompt"], "answer": parsed["completion"]}


def conversations_of_tree(rows: Iterable[Row]) -> Iterator[Row]:
    """Yields the conversations in a table of messages (`message_id`, `parent_id`, `role`, `text`): one for
    every leaf, from the root to the last answer. A leaf of the user's ends with the answer before it; no
    conversation comes twice.

    Raises:
        InvalidRow: when a message lacks an id, a role or its text.
    """
    children: dict[str | None, list[str]] = defaultdict(list)
    messages: dict[str, tuple[str | None, dict[str, str]]] = {}
    for row in rows:
        key, parent = at(row, "message_id"), row.get("parent_id")
        role = {"prompter": "user"}.get(at(row, "role"), at(row, "role"))
        messages[key] = (parent, {"role": role, "content": at(row, "text")})
        children[parent].append(key)
    seen = set()
    for key in messages:
        if children.get(key):
            continue
        if messages[key][1]["role"] != "assistant":
            key = messages[key][0]
        if key is None or key not in messages or key in seen:
            continue
        seen.add(key)
        path: list[dict[str, str]] = []
        step: str | None = key
        while step is not None and step in messages and len(path) <= len(messages):
            parent, text = messages[step]
            path.append(text)
            step = parent
        yield {"messages": path[::-1]}


TREE_COLUMNS = {"message_id", "parent_id", "role", "text"}
