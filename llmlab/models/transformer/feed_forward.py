"""Feed-forward parts, called alike: hidden states (B, T, D) in, hidden states (B, T, D) out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.models.transformer.config import LabConfig
from llmlab.models.transformer.ops import swiglu


class FeedForward(nn.Module):
    """down(activation(up(x))), as in Vaswani et al. 2017, eq. 2, without biases."""

    def __init__(self, config: LabConfig, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.activation = activation

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.down_proj(self.activation(self.up_proj(hidden_states)))
        return out


class GatedFeedForward(nn.Module):
    """down(gated(gate(x), up(x))), gated(g, u) = activation(g) * u (Shazeer 2020, eq. 6)."""

    def __init__(self, config: LabConfig, gated: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.gated = gated

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.down_proj(self.gated(self.gate_proj(hidden_states), self.up_proj(hidden_states)))
        return out


FEED_FORWARDS: dict[str, Callable[[LabConfig], nn.Module]] = {
    "relu": partial(FeedForward, activation=F.relu),
    "gelu": partial(FeedForward, activation=F.gelu),
    "silu": partial(FeedForward, activation=F.silu),
    "leaky_relu": partial(FeedForward, activation=F.leaky_relu),
    "swiglu": partial(GatedFeedForward, gated=swiglu),
}
