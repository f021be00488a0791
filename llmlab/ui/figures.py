"""Figures in words."""

from __future__ import annotations

from collections.abc import Iterable

from llmlab.runs.evaluations import SuiteFigure
from llmlab.runs.figures import RESULT_FIGURES, SUITE, first_of_tasks, is_of_suite

SHOWN = {
    "loss": "loss",
    "eval_loss": "held-out loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "mean_token_accuracy": "token accuracy",
    "accuracy": "pair accuracy",
    "reward": "reward",
    "eval_reward": "held-out reward",
    "group/spread": "spread within groups",
    "group/best": "best of group",
    "group/no_signal": "zero-variance groups",
    "completions/mean_length": "answer length",
    "completions/clipped_ratio": "truncated",
    "kl": "KL to the reference",
    "entropy": "entropy",
    "value_loss": "value loss",
    "explained_variance": "explained variance",
    "clip_ratio/region_mean": "clip fraction",
    "lm_loss": "loss of the answers",
    "preference_loss": "preference loss",
    "reward_accuracy": "reward-head accuracy",
    "reward_margin": "its margin",
    "alpha": "mean alpha",
    "gate_entropy": "entropy of alpha",
    "rewards/accuracies": "preference accuracy",
    "rewards/margins": "reward margin",
}
# held-out figures that have words of their own beside those of the training figure
HELD_OUT = {
    "eval_bits_per_byte": "bits per byte",
    "eval_perplexity": "perplexity",
    "eval_loss_spread": "spread of the losses",
    "eval_accuracy": "accuracy",
}


# figures of an evaluation whose words are not their names
MEASURED = {"macro_f1": "macro F1", "brier_score": "Brier score"}


def figure_title(name: str) -> str:
    """Returns the words for a figure by its name in `metrics.jsonl`; a name that has none, as it is."""
    if name in SHOWN:
        return SHOWN[name]
    if is_of_suite(name):
        return suite_title(name.removeprefix(SUITE))
    if not name.startswith("eval_"):
        return name
    bare = name.removeprefix("eval_")
    return f"held-out {HELD_OUT.get(name) or SHOWN.get(bare) or bare.replace('_', ' ')}"


def suite_title(name: str) -> str:
    """Returns the words for a figure of a suite, `source/figure`."""
    source, _, figure = name.partition("/")
    return f"{source}: {measured_title(figure)}"


def measured_title(figure: str) -> str:
    """Returns the words for a figure of an evaluation."""
    return MEASURED.get(figure, figure.replace("_", " "))


def suite_line(figures: Iterable[SuiteFigure]) -> str:
    """Returns in a line what each task of a suite is known by, with its interval."""
    figures = list(figures)
    firsts = first_of_tasks(one.logged for one in figures)
    return "  ".join(
        f"{suite_title(one.name)} {estimate(one.value, one.low, one.high)}"
        for one in figures
        if one.logged in firsts
    )


def estimate(value: float, low: float | None, high: float | None) -> str:
    """Returns a figure with its 95 % interval, where it has one."""
    return (
        number(value) if low is None or high is None else f"{number(value)} ({number(low)} to {number(high)})"
    )


def number(value: float | None) -> str:
    """Returns a figure as it is shown; "-" for none."""
    return "-" if value is None else f"{value:.4g}"


def in_words(names: Iterable[str]) -> list[str]:
    """Returns those of the figures that have words of their own, and what each task of a suite is known by;
    all where there are none.
    """
    names = list(names)
    firsts = first_of_tasks(names)
    known = [
        name
        for name in names
        if name in RESULT_FIGURES or name.removeprefix("eval_") in SHOWN or name in firsts
    ]
    return known or names
