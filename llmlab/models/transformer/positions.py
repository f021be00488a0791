"""Positional encodings: one class each, all called alike.

`encode(hidden_states, position_ids, key_distance)` returns the hidden states that enter the first block, the
rotation for queries and keys (or None), and the bias on attention scores (or None). The block uses what it
gets and does not know which encoding it was.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmlab.models.transformer.config import LabConfig


class Encoded(NamedTuple):
    """What a positional encoding gives to the model.

    Attributes:
        hidden_states: (B, T, D).
        rotation: cos and sin, each (B, 1, T, head_dim / 2), or None.
        position_bias: (1, H, T, keys), added to the attention scores, or None.
    """

    hidden_states: Tensor
    rotation: tuple[Tensor, Tensor] | None = None
    position_bias: Tensor | None = None


class Sinusoidal(nn.Module):
    """Fixed waves added to the scaled embeddings (Vaswani et al. 2017, section 3.5;
    the scale is section 3.4's).
    """

    def __init__(self, config: LabConfig):
        super().__init__()
        self.width = config.d_model

    def waves(self, position_ids: Tensor) -> Tensor:
        """Returns PE(pos, 2i) = sin(pos / 10000^(2i / D)) and PE(pos, 2i + 1) = cos(...), (B, T, D),
        in fp32.
        """
        even = torch.arange(0, self.width, 2, device=position_ids.device, dtype=torch.float32)
        angles = position_ids[..., None].float() * torch.exp(
            even * (-math.log(10000.0) / self.width)
        )  # (B, T, D/2)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., : self.width]

    def forward(self, hidden_states: Tensor, position_ids: Tensor, key_distance: Tensor | None) -> Encoded:
        """hidden_states (B, T, D), position_ids (B, T), key_distance (T, keys)."""
        waves = self.waves(position_ids).to(hidden_states.dtype)
        return Encoded(hidden_states * math.sqrt(self.width) + waves)


class Rotary(nn.Module):
    """Rotates queries and keys by their position (Su et al. 2021, eq. 15)."""

    def __init__(self, config: LabConfig):
        super().__init__()
        frequencies, self.scale = self.frequencies(config)
        self.inv_freq = nn.Buffer(frequencies, persistent=False)

    @staticmethod
    def frequencies(config: LabConfig, device: torch.device | None = None) -> tuple[Tensor, float]:
        """Returns theta_i = base^(-2i / head_dim), (head_dim / 2,), and the factor on cos and sin."""
        even = torch.arange(0, config.head_dim, 2, dtype=torch.float, device=device)
        return 1.0 / (config.rope_theta ** (even / config.head_dim)), 1.0

    def forward(self, hidden_states: Tensor, position_ids: Tensor, key_distance: Tensor | None) -> Encoded:
        """hidden_states (B, T, D), position_ids (B, T), key_distance (T, keys)."""
        angles = position_ids[:, None, :, None].float() * self.inv_freq.float()  # (B, 1, T, head_dim / 2)
        cos, sin = angles.cos() * self.scale, angles.sin() * self.scale
        return Encoded(hidden_states, rotation=(cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)))


class Yarn(Rotary):
    """Rope with frequencies stretched by parts and a temperature on the scores (Peng et al. 2023, eqs.
    19 to 23).
    """

    @staticmethod
    def frequencies(config: LabConfig, device: torch.device | None = None) -> tuple[Tensor, float]:
        """Returns transformers' YaRN frequencies for this configuration, and its attention factor."""
        parameters = {
            "rope_type": "yarn",
            "rope_theta": config.rope_theta,
            "factor": config.yarn_factor,
            "original_max_position_embeddings": config.yarn_original_max_seq_len,
        }
        view = _RopeView(parameters, config)
        return ROPE_INIT_FUNCTIONS["yarn"](view, device)


class _RopeView:
    """The few attributes that transformers' YaRN reads of a configuration."""

    def __init__(self, parameters: dict[str, Any], config: LabConfig):
        self.rope_parameters = parameters
        self.head_dim = config.head_dim
        self.hidden_size = config.d_model
        self.num_attention_heads = config.n_heads
        self.max_position_embeddings = config.max_seq_len

    def standardize_rope_params(self) -> None:
        """The parameters are given in transformers' current form."""


class Alibi(nn.Module):
    """A penalty on the scores that grows with distance, steeper in some heads (Press et al. 2022,
    section 3).
    """

    def __init__(self, config: LabConfig):
        super().__init__()
        self.slopes = nn.Buffer(torch.tensor(alibi_slopes(config.n_heads)), persistent=False)

    def forward(self, hidden_states: Tensor, position_ids: Tensor, key_distance: Tensor | None) -> Encoded:
        """hidden_states (B, T, D), position_ids (B, T), key_distance (T, keys)."""
        # within a document the distance of two tokens is the same counted from any origin, so restarts do not
        # matter
        assert key_distance is not None  # `LabModel` makes it for ALiBi
        bias = -self.slopes.float()[:, None, None] * key_distance  # (H, T, keys)
        return Encoded(hidden_states, position_bias=bias.to(hidden_states.dtype).unsqueeze(0))


def alibi_slopes(n_heads: int) -> list[float]:
    """Returns one slope per head: 2^(-8i / n),
    and for other head counts than powers of two every second of 2n.
    """
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    extra = [2.0 ** (-8.0 * (i + 1) / (2 * power)) for i in range(0, 2 * (n_heads - power), 2)]
    return slopes + extra


POSITIONS: dict[str, type[nn.Module]] = {
    "sinusoidal": Sinusoidal,
    "rope": Rotary,
    "yarn": Yarn,
    "alibi": Alibi,
}
