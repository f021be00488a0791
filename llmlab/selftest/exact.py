"""What is right: the formulas of a Llama-like transformer written out in fp64, on the processor.

Neither the lab's transformer nor transformers' own can be it: both compute norms, angles and softmax in fp32,
whatever the format of their weights. RMSNorm is Zhang and Sennrich 2019, eq. 4; rotation Su et al. 2021,
eq. 34, in halves; attention Vaswani et al. 2017, eq. 1, with shared keys and values (Ainslie et al. 2023);
the feed-forward part SwiGLU (Shazeer 2020, eq. 6).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASKED = -1e9  # of a score; its exponential is 0 in fp64


class Exact:
    """The weights of a model in fp64, and what they compute.

    Args:
        model: Qwen2, Llama or the lab's own, with a head or without.

    Attributes:
        weights: by their names below `model.`; they gather gradients.
    """

    def __init__(self, model: nn.Module):
        self.config: Any = model.config
        self.weights = {
            name.removeprefix("model."): weight.detach().cpu().double().clone().requires_grad_()
            for name, weight in model.named_parameters()
        }

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the logits of token ids (B, T) over the vocabulary, (B, T, V); the head is the embedding.

        Args:
            ids: token ids.
            mask: 0 at padding, (B, T).
        """
        return self.hidden(ids, mask) @ self.weights["embed_tokens.weight"].T

    def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean next-token cross-entropy; labels (B, T) are -100 where nothing is learned."""
        logits = self.logits(ids, mask)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    def hidden(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the last hidden states, (B, T, D)."""
        length = ids.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        if mask is not None:
            seen = seen & mask.bool()[:, None, None, :]
        states = self.weights["embed_tokens.weight"][ids]
        angles = self._angles(length)
        for layer in range(self.config.num_hidden_layers):
            part = f"layers.{layer}"
            states = states + self._attention(
                self._norm(states, f"{part}.input_layernorm"), part, seen, angles
            )
            states = states + self._forward(self._norm(states, f"{part}.post_attention_layernorm"), part)
        return self._norm(states, "norm")

    def gradients(self) -> dict[str, Tensor]:
        """Returns the gradient of every weight, by its name."""
        return {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}

    def _linear(self, states: Tensor, name: str) -> Tensor:
        return F.linear(states, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, states: Tensor, name: str) -> Tensor:
        eps = getattr(self.config, "rms_norm_eps", None) or self.config.norm_eps
        scale = states.square().mean(-1, keepdim=True).add(eps).rsqrt()
        return states * scale * self.weights[f"{name}.weight"]

    def _angles(self, length: int) -> tuple[Tensor, Tensor]:
        """Returns cos and sin, (T, head size / 2)."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        theta = rope.get("rope_theta") or self.config.rope_theta
        size = self.config.hidden_size // self.config.num_attention_heads
        frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        return angles.cos(), angles.sin()

    def _attention(self, states: Tensor, part: str, seen: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        heads, shared = self.config.num_attention_heads, self.config.num_key_value_heads

        def split(side: str, count: int) -> Tensor:
            values = self._linear(states, f"{part}.self_attn.{side}_proj")
            return values.view(*values.shape[:2], count, -1).transpose(1, 2)  # (B, H, T, head size)

        query, key, value = split("q", heads), split("k", shared), split("v", shared)
        query, key = _rotated(query, *angles), _rotated(key, *angles)
        key, value = (one.repeat_interleave(heads // shared, dim=1) for one in (key, value))
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        attended = scores.masked_fill(~seen, MASKED).softmax(-1) @ value
        return self._linear(attended.transpose(1, 2).flatten(2), f"{part}.self_attn.o_proj")

    def _forward(self, states: Tensor, part: str) -> Tensor:
        gate, up = (self._linear(states, f"{part}.mlp.{side}_proj") for side in ("gate", "up"))
        return self._linear(F.silu(gate) * up, f"{part}.mlp.down_proj")


def _rotated(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = values.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
