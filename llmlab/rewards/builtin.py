"""The built-in reward functions: each takes one answer and says what it is worth."""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
LAST_NUMBER = re.compile(NUMBER)
STEP = re.compile(rf"({NUMBER})\s*([-+*/x×÷])\s*({NUMBER})\s*=\s*({NUMBER})")
OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "x": operator.mul,
    "×": operator.mul,
    "/": operator.truediv,
    "÷": operator.truediv,
}
CODE = re.compile(r"```(?:python|py)?\s*\n(.*?)(?:```|\Z)", re.DOTALL)
LONGEST_CODE = 100_000  # characters
TARGET_WORDS = 50
RUN = 3  # words whose repetition counts


@dataclass(frozen=True)
class Answer:
    """One answer of the policy.

    Attributes:
        text: what it said.
        prompt: what was asked.
        reference: the reference answer of the row; "" where it has none.
        setting: of the reward, from the config.
    """

    text: str
    prompt: str = ""
    reference: str = ""
    setting: str = ""


def exact_match(answer: Answer) -> float:
    """1 when the answer equals the reference answer, surrounding space aside."""
    return float(bool(answer.reference.strip()) and answer.text.strip() == answer.reference.strip())


def numeric_match(answer: Answer) -> float:
    """1 when the final number (after `####`, in a box, or the last one) is that of the reference."""
    predicted, reference = final_number(answer.text), final_number(answer.reference)
    return float(
        predicted is not None
        and reference is not None
        and math.isclose(predicted, reference, rel_tol=1e-6, abs_tol=1e-9)
    )


def arithmetic_steps(answer: Answer) -> float:
    """Share of the steps `a + b = c` in the answer that are correct; 0 without any."""
    steps = STEP.findall(answer.text)
    correct = 0
    for a, sign, b, c in steps:
        left, other, result = _number(a), _number(b), _number(c)
        if left is None or other is None or result is None or (sign in "/÷" and other == 0):
            continue
        correct += math.isclose(OPERATORS[sign](left, other), result, rel_tol=1e-4, abs_tol=1e-6)
    return correct / len(steps) if steps else 0.0


def label_match(answer: Answer) -> float:
    """1 when the answer is the reference label, whatever its case, quotes and final stop."""
    return float(bool(answer.reference.strip()) and _bare(answer.text) == _bare(answer.reference))


def matches_format(answer: Answer) -> float:
    """1 when the regular expression of the setting is found in the answer."""
    return float(re.search(answer.setting, answer.text, re.DOTALL) is not None)


def length(answer: Answer) -> float:
    """1 for an answer of as many words as the setting says (50), falling to 0 at none or twice as many."""
    target = int(answer.setting or TARGET_WORDS)
    return max(0.0, 1.0 - abs(len(answer.text.split()) - target) / target)


def compiles(answer: Answer) -> float:
    """1 when the code of the answer (its fenced blocks, else all of it) is valid Python; nothing is run."""
    code = "\n".join(CODE.findall(answer.text)) or answer.text
    if not code.strip() or len(code) > LONGEST_CODE:
        return 0.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0.0
    return 1.0


def repetition(answer: Answer) -> float:
    """Minus the share of runs of three words that were said before: 0 for none, near -1 for a loop."""
    words = answer.text.lower().split()
    runs = [tuple(words[index : index + RUN]) for index in range(len(words) - RUN + 1)]
    return len(set(runs)) / len(runs) - 1.0 if runs else 0.0


BUILT_IN: dict[str, Callable[[Answer], float]] = {
    "exact_match": exact_match,
    "numeric_match": numeric_match,
    "arithmetic_steps": arithmetic_steps,
    "label_match": label_match,
    "format": matches_format,
    "length": length,
    "compiles": compiles,
    "repetition": repetition,
}


def final_number(text: str) -> float | None:
    """Returns the number that a text ends in: after the last `####`, in the last `\\boxed{}`,
    else the last one; or None.
    """
    _, mark, after = text.rpartition("####")
    if mark:
        return _number(next(iter(LAST_NUMBER.findall(after)), ""))
    start = text.rfind("\\boxed{")
    if start >= 0:
        boxed = LAST_NUMBER.findall(text[start + 7 : (text.find("}", start) + 1 or len(text) + 1) - 1])
        return _number(boxed[-1]) if boxed else None
    numbers = LAST_NUMBER.findall(text)
    return _number(numbers[-1]) if numbers else None


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").rstrip("."))
    except ValueError:
        return None


def _bare(text: str) -> str:
    return text.strip().strip("\"'`*").rstrip(".!").strip().lower()
