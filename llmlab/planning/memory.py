"""An estimate of the peak memory of a training step, by part.

What the backward pass keeps was counted, tensor by tensor, on both implementations (the lab's transformer and
transformers' Llama), and what is alive at the peak with torch's profiler: `benchmarks/memory.py --allocated`
counts it again.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from llmlab.config import (
    DPOConfig,
    DualHeadConfig,
    GRPOConfig,
    ModelConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    SFTConfig,
)
from llmlab.config.adapters import AdapterOptions
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.training import TrainingConfig
from llmlab.models.headers import CheckpointShape
from llmlab.planning.parameters import DualHeadCount, count_dual_head
from llmlab.planning.start import row_length, shape_of, start_shape

# the methods that train the weights of a checkpoint, or an adapter on them
OnCheckpoint = SFTConfig | PretrainConfig | RewardConfig | DPOConfig | RolloutConfig
# values an optimizer keeps for each weight, all in fp32; Adafactor's factored moments are a few rows and
# columns
STATE_VALUES = {"adamw": 2.0, "adafactor": 0.01, "lion": 1.0, "sophia": 3.0, "muon": 1.3}
LOGITS_ALIVE = 1 << 23  # the lab's own loss works through the logits in slices of this many values
TILE = (4096, 1 << 15)  # tokens and words of a slice of logits in TRL's loss
TILES_ALIVE = (
    8.25  # of those without Triton: logits, their scaled copies, probabilities, gradients ... in fp32
)
QUANTISED = {"8bit": 1.0, "4bit": 0.53}  # bytes of a weight, its share of the blocks' scales included
RUNTIME = 560e6  # Python, torch and the libraries on the CPU
# of the activations: what the C library on the CPU has freed and cannot use again, which grows with what a
# layer makes and does not keep; fitted to nine of the jobs of `benchmarks/memory.py`, the others tell whether
# it holds
FRAGMENTS = {"own": 0.55, "library": 0.6, "adapted": 0.9, "quantised": 0.4}
UNTOUCHED = (
    0.3  # of the part of TRL's slice of logits that a small vocabulary leaves empty: the heap grows around it
)
RECOMPUTED = 1.5  # layers' worth alive with checkpointing: a layer made anew, and part of its gradients
GROUPS = {"attention": ("attention",), "ffn": ("ffn",), "all-linear": ("attention", "ffn")}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step by part.

    Attributes:
        weights: of the model, frozen ones included; of a reference where it is alive beside it.
        gradients: of what trains.
        optimizer: its state.
        activations: kept for the backward pass.
        logits: over the vocabulary, with what their loss needs.
        cache: keys and values of the answers of a rollout, as far as they exceed what training on them takes.
        runtime: Python and the libraries, where they share the device's memory.
        fragments: freed and kept by the C library.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    cache: float = 0
    runtime: float = 0
    fragments: float = 0

    @property
    def total(self) -> float:
        """All parts together, in bytes."""
        return sum(self.parts().values())

    @property
    def allocated(self) -> float:
        """What torch allocates: all but the libraries and fragments."""
        return self.total - self.runtime - self.fragments

    def parts(self) -> dict[str, float]:
        """Returns bytes by the name of the part."""
        return {field.name: asdict(self)[field.name] for field in fields(self)}


def training_memory(
    config: ModelConfig,
    *,
    batch_size: int,
    optimizer: str,
    precision: str,
    gradient_checkpointing: bool,
    length: int | None = None,
    accumulates: bool = True,
) -> TrainingMemory:
    """Returns the estimated bytes of a step on `batch_size` rows; all weights of the lab's own model train,
    kept in fp32.
    """
    return _own_step(
        shape_of(config), batch_size, length or config.max_seq_len, optimizer, precision
    ).at_the_peak(checkpointing=gradient_checkpointing, accumulates=accumulates)


def _own_step(
    shape: CheckpointShape, batch_size: int, length: int, optimizer: str, precision: str
) -> StepBytes:
    """A step on all weights of the lab's own model with its own loss."""
    tokens = batch_size * length
    value = 4 if precision == "fp32" else 2
    kv_width = shape.kv_heads * shape.head_dim
    layer = value * tokens * _own_layer(shape.width, kv_width, shape.feed_forward, shape.gated)
    head = 4.0 * shape.vocabulary * shape.width  # the head's gradient is made beside the others
    return StepBytes(
        weights=shape.parameters * 4 + (shape.parameters * 2 if value == 2 else 0),
        gradients=shape.parameters * 4,
        optimizer=shape.parameters * 4 * STATE_VALUES[optimizer],
        layer=layer,
        layers=shape.layers,
        between=value * tokens * shape.width,
        # with the mask that keeps packed documents apart
        beside=value * (tokens * 2.5 * shape.width + tokens * length),
        logits=4 * min(LOGITS_ALIVE, tokens * shape.vocabulary) + head,
    )


@dataclass(frozen=True)
class StepBytes:
    """Bytes of a training step by what they are for.

    Attributes:
        weights: all of them.
        gradients: of those that train.
        optimizer: its state.
        layer: that a layer keeps for its backward pass.
        layers: how many layers there are.
        between: of the hidden states that one layer hands to the next.
        beside: that is kept once, whatever the layers do.
        logits: that the loss takes.
    """

    weights: float
    gradients: float
    optimizer: float
    layer: float
    layers: int
    between: float
    beside: float
    logits: float

    def at_the_peak(self, *, checkpointing: bool, accumulates: bool) -> TrainingMemory:
        """Returns what is alive when most is: at the loss, or in the backward pass of a layer made anew, or
        at the update.

        Args:
            checkpointing: whether layers are made anew.
            accumulates: whether gradients of earlier micro-batches are there already.
        """
        activations = self.beside + (self.between if checkpointing else self.layer) * self.layers
        again = RECOMPUTED * self.layer if checkpointing else 0.0
        parts = (activations, self.logits) if self.logits >= again else (activations + again, 0.0)
        gradients = self.gradients
        if not accumulates:  # gradients come as activations go
            gradients = max(0.0, gradients - sum(parts))
        return TrainingMemory(self.weights, gradients, self.optimizer, *parts)


def _own_layer(width: int, kv_width: int, feed_forward: int, gated: bool) -> float:
    """Values a token that a layer of the lab's transformer keeps for its backward pass."""
    return 6 * width + 2 * kv_width + (3 if gated else 2) * feed_forward


def predicted(config: TrainingConfig) -> TrainingMemory | None:
    """Returns the estimated peak of a run on this machine; None where its model's shape is not known here."""
    on_gpu = has_nvidia() and config.device in ("auto", "cuda")
    precision = (
        "fp32" if config.precision == "auto" and not on_gpu else config.precision.replace("auto", "bf16")
    )
    unused = 0.0  # of TRL's slices of logits
    shape = start_shape(config)
    if shape is None:
        return None
    own = _own_loss(config, shape)
    if isinstance(config, PretrainConfig) and own:
        length = row_length(config, shape)
        step = _own_step(shape, config.batch_size, length, config.optimizer, precision)
        memory = step.at_the_peak(
            checkpointing=config.gradient_checkpointing, accumulates=config.accumulation_steps > 1
        )
    elif isinstance(config, DualHeadConfig):
        memory = _of_dual_head(config, shape, precision)
    elif isinstance(config, OnCheckpoint):
        memory = _of_checkpoint(config, shape, precision, on_gpu)
        unused = _untouched(config, shape)
    else:
        return None
    if on_gpu:
        return memory
    kind = "own" if own else "library"
    if isinstance(config, AdapterOptions) and config.frozen_base:
        kind = "quantised" if config.quantised != "none" else "adapted"
    if config.gradient_checkpointing:  # memory before speed: freed memory is given back
        return replace(memory, runtime=RUNTIME)
    empty = UNTOUCHED * unused if kind == "library" else 0.0
    return replace(memory, runtime=RUNTIME, fragments=FRAGMENTS[kind] * memory.activations + empty)


def _of_checkpoint(
    config: OnCheckpoint, shape: CheckpointShape, precision: str, on_gpu: bool
) -> TrainingMemory:
    """A model of transformers', or the lab's own, trained whole or through an adapter."""
    wide = 4 if precision == "fp32" else 2
    adapted = config.adapter != "none"
    trained = adapter_parameters(config, shape) if adapted else shape.parameters
    if config.quantised != "none":
        weights = (
            shape.in_matrices * QUANTISED[config.quantised] + (shape.parameters - shape.in_matrices) * wide
        )
    else:
        weights = shape.parameters * (wide if adapted else 4) + (
            0 if adapted or wide == 4 else shape.parameters * 2
        )
    weights += 4 * trained if adapted else 0
    weights += shape.parameters * 4 if _second_model(config) and not adapted else 0
    rows, length, scored = _batch(config, shape)
    tokens = rows * length
    own = shape.kind == "llmlab"
    mask = wide * tokens * length  # rows are packed, or padded; transformers' kernel keeps one for each layer
    head = 0 if adapted else 4 * shape.vocabulary * shape.width  # its gradient is made beside the others
    memory = StepBytes(
        weights=weights,
        gradients=4 * trained,
        optimizer=4 * trained * STATE_VALUES[config.optimizer],
        layer=wide * tokens * _layer(config, shape) + (0 if own else mask),
        layers=shape.layers,
        between=wide * tokens * shape.width,
        beside=wide * tokens * 2.5 * shape.width + (mask if own else 0),
        logits=_tile(config, rows * scored, shape.vocabulary, wide, on_gpu) + head if scored else 0.0,
    ).at_the_peak(checkpointing=config.gradient_checkpointing, accumulates=config.accumulation_steps > 1)
    if not isinstance(config, RolloutConfig):
        return memory
    answers = config.batch_size * length * 2 * shape.layers * shape.kv_heads * shape.head_dim * wide
    return replace(memory, cache=max(0.0, answers - memory.gradients - memory.activations - memory.logits))


def _batch(config: OnCheckpoint, shape: CheckpointShape) -> tuple[int, int, int]:
    """Returns rows of a micro-batch, tokens of a row,
    and how many of these are scored over the vocabulary.
    """
    if isinstance(config, RolloutConfig):
        return (
            config.micro_batch_size,
            config.max_prompt_length + config.max_new_tokens,
            config.max_new_tokens,
        )
    if isinstance(config, SFTConfig):
        return config.micro_batch_size, config.max_length, config.max_length
    if isinstance(config, PretrainConfig):
        length = row_length(config, shape)
        return config.micro_batch_size, length, length
    answers = config.max_length - config.max_prompt_length // 2  # with prompts half as long as they may be
    return 2 * config.micro_batch_size, config.max_length, 0 if isinstance(config, RewardConfig) else answers


def _second_model(config: OnCheckpoint) -> bool:
    """Whether a frozen copy of the policy is in memory while it trains."""
    if isinstance(config, DPOConfig):
        return config.reference == "live"
    if isinstance(config, GRPOConfig):
        return config.beta > 0
    return isinstance(config, PPOConfig) and config.kl_coef > 0


def _tile(config: OnCheckpoint, tokens: int, vocabulary: int, wide: int, on_gpu: bool) -> float:
    """Bytes of the slices of logits in TRL's loss: one on a GPU, changed in place, and several in fp32
    without Triton.

    TRL's trainers set the one aside for all its words, whatever the vocabulary; on the CPU what is never
    touched takes no memory.
    """
    rows, words = min(tokens, TILE[0]), min(vocabulary, TILE[1])
    if on_gpu:
        return rows * (words if isinstance(config, PPOConfig) else TILE[1]) * wide
    return rows * words * 4 * TILES_ALIVE


def _untouched(config: OnCheckpoint, shape: CheckpointShape) -> float:
    """Bytes of those slices that are set aside and never written to:
    they are made for more words than there are.
    """
    if isinstance(config, PPOConfig):
        return 0.0
    rows, _, scored = _batch(config, shape)
    return min(rows * scored, TILE[0]) * max(0, TILE[1] - shape.vocabulary) * 4


def _layer(config: OnCheckpoint, shape: CheckpointShape) -> float:
    """Values a token that a layer keeps for its backward pass."""
    width, query, forward = shape.width, shape.heads * shape.head_dim, shape.feed_forward
    adapted, own = config.adapter != "none", shape.kind == "llmlab"
    if own and not adapted:
        return _own_layer(width, shape.kv_heads * shape.head_dim, forward, shape.gated)
    wanted = _adapted_groups(config) if adapted else ("attention", "ffn")
    inputs = 3 if shape.gated else 2  # of the feed-forward's nonlinearity and product, which are kept anyway
    # without adapters transformers' norms keep what they made of their input, too; with a mask its kernel
    # wants keys and values for every head
    widths = 5 + ("ffn" in wanted) if adapted else 8
    layer: float = (
        widths * width
        + 2 * (shape.kv_heads * shape.head_dim if own else query)
        + (inputs + ("ffn" in wanted)) * forward
    )
    if (
        adapted and config.lora_dropout
    ):  # every adapted matrix keeps an input of its own, and which values were dropped
        layer += ("attention" in wanted) * 6 * width + ("ffn" in wanted) * (2.5 * width + forward)
    return layer


def _dual_head(config: DualHeadConfig, shape: CheckpointShape) -> DualHeadCount:
    return count_dual_head(
        shape.width,
        shape.vocabulary,
        gating_size=config.gating_size,
        layer_norm=config.gating_layer_norm,
        rm_bias=config.rm_bias,
    )


def _of_dual_head(config: DualHeadConfig, shape: CheckpointShape, precision: str) -> TrainingMemory:
    """Two heads and a gate on a frozen backbone, whose layers keep nothing."""
    count = _dual_head(config, shape)
    wide = 4 if precision == "fp32" else 2
    frozen = shape.in_matrices * (QUANTISED[config.load_in] if config.load_in != "none" else wide)
    frozen += (shape.parameters - shape.in_matrices) * wide
    tokens = 2 * config.micro_batch_size * config.max_length
    logits = (
        10 * 4 * min(LOGITS_ALIVE, tokens * shape.vocabulary) + 4 * count.head
    )  # slices; a head's gradient beside its sum
    passing = (
        wide * tokens * (6 * shape.width + (4 if shape.gated else 2) * shape.feed_forward)
    )  # of a layer, gone at the loss
    return TrainingMemory(
        weights=frozen + 4 * count.trained,
        gradients=4 * count.trained,
        optimizer=4 * count.trained * STATE_VALUES[config.optimizer],
        activations=4 * tokens * 7 * shape.width + max(0.0, passing - logits),  # of the gate
        logits=logits,
    )


def checkpoint_bytes(config: TrainingConfig) -> float:
    """Returns what a run writes at most: checkpoints with the optimizer's state, one more while it saves,
    `best` and `final`.

    0 where its model's shape is not known here.
    """
    return 4 * trained_parameters(config) * (3 * (config.save_total_limit + 1) + 2)


def trained_parameters(config: TrainingConfig) -> int:
    """Returns how many weights learn; 0 where the model's shape is not known here."""
    shape = start_shape(config)
    if shape is None:
        return 0
    if isinstance(config, DualHeadConfig):
        return _dual_head(config, shape).trained
    if isinstance(config, AdapterOptions) and config.frozen_base:
        return adapter_parameters(config, shape)
    return shape.parameters


def _own_loss(config: TrainingConfig, shape: CheckpointShape) -> bool:
    """Whether a run trains all weights of the lab's own model by the lab's own loss."""
    return isinstance(config, PretrainConfig) and shape.kind == "llmlab" and not config.frozen_base


def adapter_parameters(config: AdapterOptions, shape: CheckpointShape) -> int:
    """Returns the weights of a LoRA adapter:
    rank times the rows and columns of every matrix that gets one.
    """
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sides = {
        "attention": 2 * (shape.width + query) + 2 * (shape.width + kv),
        "ffn": (3 if shape.gated else 2) * (shape.width + shape.feed_forward),
    }
    return config.lora_r * shape.layers * sum(sides[group] for group in _adapted_groups(config))


def _adapted_groups(config: AdapterOptions) -> tuple[str, ...]:
    if isinstance(config.lora_targets, str):
        return GROUPS.get(config.lora_targets, ("attention", "ffn"))
    return ("attention",)


def has_nvidia() -> bool:
    """Returns whether an NVIDIA device is there, without loading torch."""
    return Path("/proc/driver/nvidia/version").exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") != ""
