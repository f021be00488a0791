"""What a policy answered, what that is worth by each reward, and the figures of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Rows = list[dict[str, Any]]
Seeds = list[tuple[int, int, int, int]]


@dataclass(frozen=True)
class Reward:
    """One of the rewards that add up.

    Attributes:
        name: of its figures.
        weight: in the sum.
        function: (prompts, completions, **columns) -> one number a completion.
    """

    name: str
    weight: float
    function: Callable[..., list[float]]


@dataclass(frozen=True)
class Answers:
    """Prompts and what the policy answered.

    Attributes:
        input_ids: prompts, padded on the left, then answers, padded on the right, (B, P + T).
        attention_mask: 0 at padding, of that shape.
        length: T, tokens of the longest answer.
        ended: whether an answer ends with an end token, (B,).
        texts: of the answers.
        token_ids: of the answers, without padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    length: int
    ended: Tensor
    texts: list[str]
    token_ids: list[list[int]]

    @property
    def mask(self) -> Tensor:
        """1 at the tokens of answers, in fp32, (B, T)."""
        return self.attention_mask[:, -self.length :].float()


def answer_figures(
    rewards: Tensor, lengths: Tensor, ended: Tensor, *, names: Sequence[str], weights: Tensor
) -> dict[str, float]:
    """Returns what answers scored and how long they are.

    Args:
        rewards: (answers, rewards).
        lengths: in tokens, (answers,).
        ended: whether each ended by itself, (answers,).
        names: of the rewards.
        weights: of the rewards, (rewards,).
    """
    scores = rewards @ weights
    lengths = lengths.float()
    finished = lengths[ended] if ended.any() else lengths.new_zeros(1)
    figures = {"reward": scores.mean(), "reward_std": scores.std()}
    for name, values in zip(names, rewards.T, strict=True):
        figures |= {f"rewards/{name}/mean": values.mean(), f"rewards/{name}/std": values.std()}
    for kind, values in (("", lengths), ("terminated_", finished)):
        figures |= {
            f"completions/mean_{kind}length": values.mean(),
            f"completions/min_{kind}length": values.min(),
            f"completions/max_{kind}length": values.max(),
        }
    figures["completions/clipped_ratio"] = 1 - ended.float().mean()
    return {name: value.item() for name, value in figures.items()}
