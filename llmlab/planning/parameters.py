"""Exact parameter counts of a model config, without building the model."""

from __future__ import annotations

from dataclasses import dataclass

from llmlab.config import ModelConfig
from llmlab.models.shapes import CheckpointShape


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by part; tied embeddings count once.

    Attributes:
        embedding: rows x width of the input embedding.
        attention: q, k, v and output projections of all layers.
        feed_forward: feed-forward matrices of all layers.
        norms: all normalisation weights and biases.
        head: the output head where it is not the embedding.
    """

    embedding: int
    attention: int
    feed_forward: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.non_embedding + self.head

    @property
    def non_embedding(self) -> int:
        """All but embedding and output head."""
        return self.attention + self.feed_forward + self.norms


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Returns the parameters of the model that this config builds."""
    d, kv_width = config.d_model, config.kv_heads * config.head_dim
    projections = 2 * d * d + 2 * d * kv_width + (d + 2 * kv_width if config.attention_bias else 0)
    norm = d * (2 if config.norm_type == "layernorm" else 1)
    return ParameterCount(
        embedding=config.vocab_size * d,
        attention=config.n_layers * projections,
        feed_forward=config.n_layers * (3 if config.gated else 2) * d * config.d_ff,
        norms=(2 * config.n_layers + 1) * norm,
        head=0 if config.tie_word_embeddings else config.vocab_size * d,
    )


def flops_per_token(config: ModelConfig, length: int | None = None) -> float:
    """Returns forward and backward FLOPs per trained token: 6 per weight in a matrix product, and attention.

    Attention costs 12 x layers x width x the mean number of keys a query sees (Chowdhery et al. 2022,
    appendix B, with the causal half left out).
    """
    parts = count_parameters(config)
    length = length or config.max_seq_len
    keys = (length + 1) / 2
    if config.sliding_window and config.sliding_window < length:
        keys = config.sliding_window * (1 - (config.sliding_window - 1) / (2 * length))
    in_products = parts.attention + parts.feed_forward + config.vocab_size * config.d_model
    return 6 * in_products + 12 * config.n_layers * config.d_model * keys


def flops_of_checkpoint(shape: CheckpointShape, length: int) -> float:
    """Returns the same of a model that is there, by its tensors; all of its weights learn."""
    in_products = shape.in_matrices + shape.vocabulary * shape.width
    return 6 * in_products + 12 * shape.layers * shape.heads * shape.head_dim * (length + 1) / 2


def kv_cache_bytes_per_token(config: ModelConfig, bytes_per_value: int = 2) -> int:
    """Returns the bytes that the KV cache grows by with each token (bf16 unless said otherwise)."""
    return 2 * config.n_layers * config.kv_heads * config.head_dim * bytes_per_value


@dataclass(frozen=True)
class DualHeadCount:
    """Parameters that are trained.

    Attributes:
        head: of each of the two heads, biases left out.
        biases: of both heads.
        gate: attention, norm and last layers.
    """

    head: int
    biases: int
    gate: int

    @property
    def trained(self) -> int:
        """All of them."""
        return 2 * self.head + self.biases + self.gate


def count_dual_head(
    width: int,
    vocabulary: int,
    *,
    gating_size: int | None = None,
    layer_norm: bool = True,
    rm_bias: bool = False,
    backbone_bias: bool = False,
) -> DualHeadCount:
    """Returns the trained parameters over a backbone of a width and a vocabulary.

    The gate has four projections of width x width (biases on queries, keys and values), a layer to
    `gating_size` (a quarter of the width where left out) and one to a single number.
    """
    size = gating_size or max(1, width // 4)
    attention = 4 * width * width + 3 * width
    last = width * size + size + size + 1
    biases = vocabulary * ((rm_bias or backbone_bias) + backbone_bias)
    return DualHeadCount(width * vocabulary, biases, attention + last + (2 * width if layer_norm else 0))
