"""Advantages and losses of PPO over the tokens of answers, as pure functions of tensors (B, T)."""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(scores: Tensor, log_probs: Tensor, reference: Tensor | None, mask: Tensor, kl_coef: float) -> Tensor:
    """Returns r_t = -kl_coef (log pi_old - log ref)_t, plus the score at an answer's last token (Ziegler et al. 2019, eq. 2).

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
    """Returns generalised advantage estimates (Schulman et al. 2016, eq. 16): sum over l of (gamma lambda)^l delta_{t+l}.

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


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the values with mean 0 and standard deviation 1 over the masked ones; 0 elsewhere."""
    mean, deviation = masked_moments(values, mask)
    return (values - mean) / (deviation + 1e-8) * mask


def masked_moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of the masked values."""
    count = mask.sum().clamp(min=1)
    mean = (values * mask).sum() / count
    return mean, (((values - mean) ** 2 * mask).sum() / count).sqrt()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Returns 1/2 max((V - R)^2, (clip(V, V_old +- clip_range) - R)^2) for each token, as PPO's first code had it."""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Returns 1 - Var(R - V) / Var(R) over the masked tokens: 1 for a perfect critic, 0 for none, below 0 for a harmful one."""
    _, spread = masked_moments(returns, mask)
    _, left = masked_moments(returns - values, mask)
    return (1 - (left / spread) ** 2).item() if spread > 1e-8 else 0.0
