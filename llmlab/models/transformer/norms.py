"""Normalisation layers, called alike: hidden states in, hidden states out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmlab.models.transformer.config import LabConfig
from llmlab.models.transformer.ops import rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale (Zhang & Sennrich 2019)."""

    def __init__(self, config: LabConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.eps = config.norm_eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return rms_norm(hidden_states, self.weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """Normalisation by mean and variance with a learned scale and bias (Ba et al. 2016)."""

    def __init__(self, config: LabConfig):
        super().__init__(config.d_model, eps=config.norm_eps)


NORMS: dict[str, type[nn.Module]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}
