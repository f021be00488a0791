"""What a dual head adds to its backbone: parameters, FLOPs of a generated token, bytes of training. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmlab.config import DualHeadConfig, ModelConfig
from llmlab.errors import LabError
from llmlab.plan.checkpoint import CheckpointShape
from llmlab.plan.memory import LOGITS_ALIVE, QUANTISED, STATE_VALUES
from llmlab.plan.parameters import count_parameters, kv_cache_bytes_per_token
from llmlab.plan.units import size


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
    width: int, vocabulary: int, *, gating_size: int | None = None, layer_norm: bool = True, rm_bias: bool = False,
    backbone_bias: bool = False,
) -> DualHeadCount:  # fmt: skip
    """Returns the trained parameters over a backbone of a width and a vocabulary.

    The gate has four projections of width x width (biases on queries, keys and values), a layer to `gating_size` (a quarter
    of the width where left out) and one to a single number.
    """
    size = gating_size or max(1, width // 4)
    attention = 4 * width * width + 3 * width
    last = width * size + size + size + 1
    biases = vocabulary * ((rm_bias or backbone_bias) + backbone_bias)
    return DualHeadCount(width * vocabulary, biases, attention + last + (2 * width if layer_norm else 0))


def dual_head_rows(config: DualHeadConfig, shape: CheckpointShape, precision: str) -> list[tuple[str, str]]:
    """Returns (what, how much) of a dual head on a backbone."""
    made = count_dual_head(
        shape.width,
        shape.vocabulary,
        gating_size=config.gating_size,
        layer_norm=config.gating_layer_norm,
        rm_bias=config.rm_bias,
    )
    if shape.width % config.gating_num_heads:
        raise LabError(
            f"`gating_num_heads` {config.gating_num_heads} does not divide the backbone's width {shape.width}",
            remedy=f"use {math.gcd(shape.width, 8)}",
        )
    whole = shape.parameters + made.trained
    wide = 4 if precision == "fp32" else 2
    frozen = shape.in_matrices * QUANTISED[config.load_in] if config.load_in != "none" else shape.in_matrices * wide
    frozen += (shape.parameters - shape.in_matrices) * wide
    optimizer = 4 * made.trained * STATE_VALUES[config.optimizer]
    alive = 6 * 4 * LOGITS_ALIVE + 4 * made.head  # slices of logits and their gradients; a head's gradient beside the sum
    total = frozen + 8 * made.trained + optimizer + alive
    return [
        ("heads", f"{made.head:,} parameters each, over {shape.vocabulary:,} tokens; the gate {made.gate:,}"),
        ("trained", f"{made.trained:,} of {whole:,} parameters ({made.trained / whole:.1%})"),
        (
            "training memory",
            f"about {size(total)}: backbone {size(frozen)}, heads and gate with gradients {size(8 * made.trained)}, "
            f"optimizer {size(optimizer)}, slices of logits {size(alive)}; hidden states beside it",
        ),
    ]


def generation_flops(config: ModelConfig, context: int) -> tuple[int, int]:
    """Returns FLOPs of one generated token after `context` others, by the backbone alone and with both heads and the gate.

    Two for each weight in a matrix product, and 4 x width for each layer and earlier token in attention.
    """
    parts, made = count_parameters(config), count_dual_head(config.d_model, config.vocab_size)
    looks = 4 * config.d_model * context
    alone = 2 * (parts.attention + parts.feed_forward + made.head) + config.n_layers * looks
    return alone, alone + 2 * (made.head + made.gate) + looks


def generation_bytes(config: ModelConfig, context: int) -> tuple[int, int]:
    """Returns the bytes of weights and cache (bf16) that one generated token reads, alone and with both heads and the gate."""
    made = count_dual_head(config.d_model, config.vocab_size)
    alone = 2 * count_parameters(config).total + context * kv_cache_bytes_per_token(config)
    return alone, alone + 2 * (made.head + made.gate) + context * 4 * config.d_model


def training_bytes(config: ModelConfig) -> tuple[int, int]:
    """Returns bytes of weights, gradients and AdamW's moments: of the dual head, and of DPO on all weights beside a reference.

    Frozen models are in bf16; what trains has fp32 weights, gradients and two moments. Activations are left out: DPO keeps
    those of every layer, the dual head those of the gate.
    """
    whole = count_parameters(config).total
    return 2 * whole + 16 * count_dual_head(config.d_model, config.vocab_size).trained, 16 * whole + 2 * whole
