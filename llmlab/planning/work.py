"""What an update of a run computes and reads: FLOPs, tokens, and the steps of generation. No torch.

FLOPs of a forward pass are 2 for each weight in a matrix product and those of attention (Chowdhery et al.
2022, appendix B); a backward pass takes twice as many, half of them for the gradients of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llmlab.config import (
    DPOConfig,
    DualHeadConfig,
    GRPOConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    SFTConfig,
)
from llmlab.config.adapters import AdapterOptions
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.training import TrainingConfig
from llmlab.models.shapes import CheckpointShape
from llmlab.planning.live import on_gpu
from llmlab.planning.needs import (
    OnCheckpoint,
    adapter_parameters,
    dropped_values,
    layer_values,
    trained_parameters,
)
from llmlab.planning.parameters import count_dual_head, flops_of_checkpoint
from llmlab.planning.processes import replicas_of
from llmlab.planning.start import row_length, start_shape

PAIRS = (DPOConfig, RewardConfig, DualHeadConfig)  # whose rows are two answers to a prompt


@dataclass(frozen=True)
class Aside:
    """What an update does beside products of large matrices.

    Attributes:
        attention: FLOPs of attention; they are among those of the update.
        narrow: FLOPs of an adapter's narrow matrices; likewise.
        elements: values that a forward pass makes for the backward pass, and as many times as these passes
            are made; the logits are among them.
        drawn: random numbers of dropout.
        unpacked: 4-bit weights that are made wide again.
        updated: weights that the optimizer changes.
        layers: that micro-batches go through, there and back.
    """

    attention: float = 0.0
    narrow: float = 0.0
    elements: float = 0.0
    drawn: float = 0.0
    unpacked: float = 0.0
    updated: float = 0.0
    layers: float = 0.0


@dataclass(frozen=True)
class Work:
    """An update of a run.

    Attributes:
        flops: on each device.
        tokens: that all devices read, padding included.
        answers: tokens that are generated one after the other; 0 where none are.
        answer_flops: of `flops`, those of generation.
        weights: bytes that each of these tokens reads.
        layers: of the model.
        aside: what is done beside products of matrices, on each device.
    """

    flops: float
    tokens: float
    answers: float = 0.0
    answer_flops: float = 0.0
    weights: float = 0.0
    layers: int = 0
    aside: Aside = field(default_factory=Aside)


def row_tokens(config: TrainingConfig) -> int | None:
    """Returns the tokens of a row at most, of a pair both of its answers; None where it is not known."""
    if isinstance(config, RolloutConfig):
        return config.max_prompt_length + config.max_new_tokens
    if isinstance(config, PretrainConfig):
        shape = start_shape(config)
        return row_length(config, shape) if shape else None
    if isinstance(config, SFTConfig):
        return config.max_length
    if isinstance(config, PAIRS):
        return 2 * config.max_length
    return None


def updates_of_a_round(config: TrainingConfig) -> int:
    """Returns the updates on one batch of answers; 1 where a method generates none."""
    if isinstance(config, GRPOConfig):
        return config.iterations
    if isinstance(config, PPOConfig):
        return config.batch_size // config.mini_batch_size * config.ppo_epochs
    return 1


def work_of(config: TrainingConfig, *, row: float | None = None) -> Work | None:
    """Returns what an update computes; None where the model's shape is not known here.

    Args:
        config: of the run.
        row: tokens of a row, as they are; left out, as many as there may be.
    """
    shape, longest = start_shape(config), row_tokens(config)
    if shape is None or not longest:
        return None
    row = min(row or longest, longest)
    rows = config.micro_batch_size * config.accumulation_steps
    tokens = rows * row
    length = int(row / (2 if isinstance(config, PAIRS) else 1))
    forward = flops_of_checkpoint(shape, length) / 3
    each = _passes(config) * forward + _adapter_flops(config, shape)
    if isinstance(config, DualHeadConfig):
        each += 6 * count_dual_head(shape.width, shape.vocabulary).trained
    share = tokens / config.tensor_parallel
    work = Work(
        each * share,
        tokens * replicas_of(config),
        layers=shape.layers,
        aside=_aside(config, shape, length, share),
    )
    return _with_answers(config, work, shape, forward * tokens) if isinstance(config, RolloutConfig) else work


def _aside(config: TrainingConfig, shape: CheckpointShape, length: int, tokens: float) -> Aside:
    """Returns what is done beside products of matrices for as many tokens."""
    quantised = getattr(config, "quantised", None) or getattr(config, "load_in", "none")
    # a quantised base is made wide in each pass of each micro-batch
    unpacked = config.accumulation_steps * shape.in_matrices if quantised == "4bit" else 0
    if isinstance(config, DualHeadConfig):
        values = shape.layers * (6 * shape.width + 3 * shape.feed_forward) / 3 + 2 * shape.vocabulary
        return Aside(
            elements=values * tokens,
            unpacked=unpacked,
            updated=trained_parameters(config),
            layers=config.accumulation_steps * shape.layers / 3,
        )
    if not isinstance(config, OnCheckpoint):
        return Aside()
    frozen = config.frozen_base
    passes = _passes(config) + frozen  # an adapter's backward pass takes as long here
    values = shape.layers * layer_values(config, shape, length, gpu=on_gpu(config))
    if not isinstance(config, RewardConfig):
        values += shape.vocabulary
    attention = 2 * shape.layers * shape.heads * shape.head_dim * (length + 1)
    return Aside(
        attention=passes * attention * tokens,
        narrow=_adapter_flops(config, shape) * tokens,
        elements=passes / 3 * values * tokens,
        drawn=(1 + config.gradient_checkpointing) * dropped_values(config, shape) * tokens,
        unpacked=(2 + config.gradient_checkpointing) * unpacked,
        updated=trained_parameters(config),
        layers=passes / 3 * config.accumulation_steps * shape.layers,
    )


def _passes(config: TrainingConfig) -> float:
    """Returns forward passes' worth that each token of a row costs."""
    if isinstance(config, DualHeadConfig):
        return 1.0
    frozen = isinstance(config, AdapterOptions) and config.frozen_base
    passes = (2.0 if frozen else 3.0) + config.gradient_checkpointing
    return passes + (isinstance(config, DPOConfig) and config.reference == "live")


def _adapter_flops(config: TrainingConfig, shape: CheckpointShape) -> float:
    if not isinstance(config, AdapterOptions) or not config.frozen_base:
        return 0.0
    return 6.0 * adapter_parameters(config, shape)


def _with_answers(config: RolloutConfig, work: Work, shape: CheckpointShape, forward: float) -> Work:
    """Adds generation and scoring, divided over the updates on a batch of answers."""
    updates = updates_of_a_round(config)
    rounds = config.batch_size / (config.micro_batch_size * config.accumulation_steps) / updates
    scores = isinstance(config, GRPOConfig) and config.iterations > 1  # the log-probabilities before
    if isinstance(config, PPOConfig):
        scores = True
    reference = (isinstance(config, GRPOConfig) and config.beta > 0) or (
        isinstance(config, PPOConfig) and config.kl_coef > 0
    )
    generation = forward * rounds
    scored = (scores + reference) * rounds
    aside = replace(
        work.aside,
        attention=work.aside.attention * (1 + scored / _passes(config)),
        elements=work.aside.elements * (1 + scored / _passes(config)),
    )
    return replace(
        work,
        flops=work.flops + generation * (1 + scores + reference),
        aside=aside,
        answers=config.max_new_tokens / updates,
        answer_flops=generation,
        weights=shape.parameters * (4 if config.precision == "fp32" else 2),
    )
