"""The gate of a dual head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from llmlab.models.dual_head.config import LabDualHeadConfig
from llmlab.models.transformer.attention import Attention
from llmlab.models.transformer.config import LabConfig


class Gate(nn.Module):
    """alpha_t from the hidden states up to t, by causal attention (Vaswani et al.
    2017) and one small layer.
    """

    def __init__(self, config: LabDualHeadConfig):
        super().__init__()
        width = config.hidden_size
        # biases and no positions: what counts is what was said, not where
        self.config = LabConfig(
            d_model=width,
            n_heads=config.gating_num_heads,
            n_layers=1,
            attention_type="mha",
            attention_bias=True,
            dropout=config.gating_dropout,
        )
        self.config._attn_implementation = "sdpa"
        self.norm = nn.LayerNorm(width) if config.gating_layer_norm else nn.Identity()
        self.attention = Attention(self.config, layer_idx=config.num_hidden_layers - 1)
        self.narrow = nn.Linear(width, config.gating_size)
        self.score = nn.Linear(config.gating_size, 1)
        self.dropout = nn.Dropout(config.gating_dropout)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, cache: Cache | None = None) -> Tensor:
        """hidden_states (B, T, D) -> alpha (B, T), each between 0 and 1, in fp32."""
        hidden_states = self.norm(hidden_states.to(self.score.weight.dtype))
        attended, _ = self.attention(hidden_states, mask, past_key_values=cache)
        return torch.sigmoid(self.score(self.dropout(F.gelu(self.narrow(attended)))).squeeze(-1).float())
