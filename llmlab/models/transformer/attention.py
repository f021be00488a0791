"""Causal self-attention with shared key/value heads; the kernel is transformers' (sdpa, flex,
flash or eager).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmlab.models.transformer.config import LabConfig
from llmlab.models.transformer.ops import rotate


def eager_attention(
    module: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d) + bias + mask) v, written out (Vaswani et al. 2017, eq. 1).

    Shapes: query (B, H, T, D), key and value (B, KV, S, D); returns (B, T, H, D) and the weights (B, H, T,
        S).
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if position_bias is not None:
        scores = scores + position_bias[..., : scores.shape[-1]]
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention (Ainslie et al. 2023):
    they differ in the number of kv heads.
    """

    def __init__(self, config: LabConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.n_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.dropout
        self.is_causal = True
        self.sliding_window = config.sliding_window
        kv_width = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.d_model, config.n_heads * self.head_dim, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.d_model, kv_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.d_model, kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.n_heads * self.head_dim, config.d_model, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotation: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states (B, T, D) -> (B, T, D) and, from the eager kernel, the weights (B, H, T, S)."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)  # (B, H, T, head_dim)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)  # (B, KV, T, head_dim)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        kernel: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        output, weights = kernel(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights
