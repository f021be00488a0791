"""Advantages and losses of PPO over the tokens of answers, as pure functions of tensors (B, T)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Sum = Callable[[Tensor], Tensor]  # of a number over all processes


def _alone(value: Tensor) -> Tensor:
    return value


def token_rewards(
    scores: Tensor, log_probs: Tensor, reference: Tensor | None, mask: Tensor, kl_coef: float
) -> Tensor:
    """Returns r_t = -kl_coef (log pi_old - log ref)_t, plus the score at an answer's last token (Ziegler et
    al. 2019, eq. 2).

    Args:
        scores: of the answers, (B,).
        log_probs: of the policy that said them, (B, T).
        reference: the reference's, (B, T); None leaves the penalty out.
        mask: 1 on the tokens of an answer, which stand at its beginning, (B, T).
        kl_coef: weight of the penalty.
    """
    rewards = torch.zeros_like(log_probs) if reference is None else -kl_coef * (log_probs - reference) * mask
    last = (mask.sum(dim=1).long() - 1).clamp(min=0)
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Returns generalised advantage estimates (Schulman et al. 2016, eq. 16): sum over l of (gamma lambda)^l
    delta_{t+l}.

    delta_t = r_t + gamma V_{t+1} - V_t, and V = 0 behind the last token; 0 outside the mask.
    """
    mask = mask.to(values.dtype)
    values = values * mask
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.size(1))):
        after = values[:, t + 1] if t + 1 < values.size(1) else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * after - values[:, t]
        following = (delta + gamma * gae_lambda * following) * mask[:, t]
        advantages[:, t] = following
    return advantages


def whiten(values: Tensor, mask: Tensor, min_std: float = 0.0, total: Sum = _alone) -> Tensor:
    """Returns the values with mean 0 and standard deviation 1 over the masked ones; 0 elsewhere.

    Args:
        values: (B, T).
        mask: 1 on the tokens that count, (B, T).
        min_std: a standard deviation below it is taken as it. Where all answers are worth the same, only
            noise is left, which would be blown up to the size of a signal: a policy that was always right was
            seen to collapse from it.
        total: sums a number over the processes that share the rows.
    """
    mean, deviation = masked_moments(values, mask, total)
    return (values - mean) / (deviation.clamp(min=min_std) + 1e-8) * mask


def masked_moments(values: Tensor, mask: Tensor, total: Sum = _alone) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of the masked values,
    of all processes where `total` sums over them.
    """
    count = total(mask.sum()).clamp(min=1)
    mean = total((values * mask).sum()) / count
    return mean, (total(((values - mean) ** 2 * mask).sum()) / count).sqrt()


def discounted(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Returns what is still to come at every token, sum over l of gamma^l r_{t+l}:
    GAE's return with lambda 1.
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)


def clipped_policy_loss(log_probs: Tensor, old: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Returns -min(ratio A, clip(ratio, 1 +- clip_range) A) for each token, ratio = pi / pi_old
    (Schulman et al. 2017, eq. 7).
    """
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Returns 1/2 max((V - R)^2, (clip(V, V_old +- clip_range) - R)^2) for each token,
    as PPO's first code had it.
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, total: Sum = _alone) -> float:
    """Returns 1 - Var(R - V) / Var(R) over the masked tokens: 1 for a perfect critic, 0 for none,
    below 0 for a harmful one.
    """
    _, spread = masked_moments(returns, mask, total)
    _, left = masked_moments(returns - values, mask, total)
    return (1 - (left / spread) ** 2).item() if spread > 1e-8 else 0.0
