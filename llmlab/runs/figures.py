"""The figures that sum a run up, in the order in which they are told."""

from __future__ import annotations

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
