"""What an update of a run computes and reads: FLOPs, tokens, and the steps of generation. No torch.

FLOPs of a forward pass are 2 for each weight in a matrix product and those of attention (Chowdhery et al.
2022, appendix B); a backward pass takes twice as many, half of them for the gradients of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from llmlab.planning.needs import adapter_parameters
from llmlab.planning.parameters import count_dual_head, flops_of_checkpoint
from llmlab.planning.processes import replicas_of
from llmlab.planning.start import row_length, start_shape

PAIRS = (DPOConfig, RewardConfig, DualHeadConfig)  # whose rows are two answers to a prompt


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
    """

    flops: float
    tokens: float
    answers: float = 0.0
    answer_flops: float = 0.0
    weights: float = 0.0
    layers: int = 0


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
    forward = flops_of_checkpoint(shape, int(row / (2 if isinstance(config, PAIRS) else 1))) / 3
    each = _passes(config) * forward + _adapter_flops(config, shape)
    if isinstance(config, DualHeadConfig):
        each += 6 * count_dual_head(shape.width, shape.vocabulary).trained
    work = Work(each * tokens / config.tensor_parallel, tokens * replicas_of(config), layers=shape.layers)
    return _with_answers(config, work, shape, forward * tokens) if isinstance(config, RolloutConfig) else work


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
    return Work(
        work.flops + generation * (1 + scores + reference),
        work.tokens,
        answers=config.max_new_tokens / updates,
        answer_flops=generation,
        weights=shape.parameters * (4 if config.precision == "fp32" else 2),
        layers=shape.layers,
    )
