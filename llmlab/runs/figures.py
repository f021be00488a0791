"""The figures of a run: those that sum it up, those of its suite, which of two values is the better one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the list of runs is there before any config
    from llmlab.config.watching import Better

# in the order in which they are told
RESULT_FIGURES = (
    "eval_loss",
    "eval_bits_per_byte",
    "eval_rewards/accuracies",
    "eval_accuracy",
    "eval_reward",
    "eval_reward_accuracy",
    "eval_perplexity",
    "eval_alpha",
    "train_loss",
)
# of what an evaluation measures; what is not here is neither good nor bad
BETTER: dict[str, Better] = {
    **dict.fromkeys(
        ("accuracy", "macro_f1", "exact_match", "preference_accuracy", "reward", "supported"), "higher"
    ),
    **dict.fromkeys(
        (
            "loss",
            "bits_per_byte",
            "perplexity",
            "calibration_error",
            "brier_score",
            "label_loss",
            "contradicted",
            "unsupported",
            "unreadable",
        ),
        "lower",
    ),
}
SUITE = "eval_suite/"  # how the logged figures of a suite begin: eval_suite/questions/exact_match
SUITE_SECONDS = f"{SUITE}runtime"  # what the evaluation took
LOWER = ("loss", "bits_per_byte", "perplexity")  # endings of held-out figures


def is_of_suite(name: str) -> bool:
    """Returns whether a logged figure is one of a suite."""
    return name.startswith(SUITE) and name != SUITE_SECONDS


def better_of(name: str) -> Better | None:
    """Returns which values of a logged figure are the better ones; None where it is neither good nor bad."""
    if is_of_suite(name):
        return BETTER.get(name.rsplit("/", 1)[-1])
    return "lower" if name.endswith(LOWER) else "higher"


def is_better(name: str, value: float, other: float) -> bool:
    """Returns whether a value of a logged figure is better than another one; NaN never is."""
    return value < other if better_of(name) == "lower" else value > other


def first_of_tasks(names: Iterable[str]) -> list[str]:
    """Returns of the figures of a suite the first one of each task: what it is known by."""
    firsts: dict[str, str] = {}
    for name in names:
        if is_of_suite(name):
            firsts.setdefault(name.rsplit("/", 1)[0], name)
    return list(firsts.values())
