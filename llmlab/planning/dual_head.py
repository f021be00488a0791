"""What a dual head adds to its backbone: parameters, FLOPs and bytes of a generated token,
bytes of training. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmlab.config import DualHeadConfig, ModelConfig
from llmlab.errors import LabError
from llmlab.models.shapes import CheckpointShape
from llmlab.planning.parameters import count_dual_head, count_parameters, kv_cache_bytes_per_token


@dataclass(frozen=True)
class DualHeadPlan:
    """Parameters of a dual head on a backbone.

    Attributes:
        head: of each of the two heads.
        gate: of the gate.
        vocabulary: tokens that a head scores.
        trained: of both heads and the gate.
        total: the backbone's included.
    """

    head: int
    gate: int
    vocabulary: int
    trained: int
    total: int


def dual_head_plan(config: DualHeadConfig, shape: CheckpointShape) -> DualHeadPlan:
    """Returns the parameters of a dual head on a backbone.

    Raises:
        LabError: when the gate's heads do not divide the backbone's width.
    """
    count = count_dual_head(
        shape.width,
        shape.vocabulary,
        gating_size=config.gating_size,
        layer_norm=config.gating_layer_norm,
        rm_bias=config.rm_bias,
    )
    if shape.width % config.gating_num_heads:
        raise LabError(
            f"`gating_num_heads` {config.gating_num_heads} does not divide the backbone's width"
            f" {shape.width}",
            remedy=f"use {math.gcd(shape.width, 8)}",
        )
    total = shape.parameters + count.trained
    return DualHeadPlan(count.head, count.gate, shape.vocabulary, count.trained, total)


def generation_flops(config: ModelConfig, context: int) -> tuple[int, int]:
    """Returns FLOPs of one generated token after `context` others, by the backbone alone and with both heads
    and the gate.

    Two for each weight in a matrix product, and 4 x width for each layer and earlier token in attention.
    """
    parts, heads = count_parameters(config), count_dual_head(config.d_model, config.vocab_size)
    looks = 4 * config.d_model * context
    alone = 2 * (parts.attention + parts.feed_forward + heads.head) + config.n_layers * looks
    return alone, alone + 2 * (heads.head + heads.gate) + looks


def generation_bytes(config: ModelConfig, context: int) -> tuple[int, int]:
    """Returns the bytes of weights and cache (bf16) that one generated token reads,
    alone and with both heads and the gate.
    """
    heads = count_dual_head(config.d_model, config.vocab_size)
    alone = 2 * count_parameters(config).total + context * kv_cache_bytes_per_token(config)
    return alone, alone + 2 * (heads.head + heads.gate) + context * 4 * config.d_model


def training_bytes(config: ModelConfig) -> tuple[int, int]:
    """Returns bytes of weights, gradients and AdamW's moments: of the dual head, and of DPO on all weights
    beside a reference.

    Frozen models are in bf16; what trains has fp32 weights, gradients and two moments. Activations are left
    out: DPO keeps those of every layer, the dual head those of the gate.
    """
    whole = count_parameters(config).total
    return 2 * whole + 16 * count_dual_head(config.d_model, config.vocab_size).trained, 16 * whole + 2 * whole
