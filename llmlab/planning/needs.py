"""What a config needs of memory, read from its options and the shape of its model.

What the backward pass keeps was counted, tensor by tensor, on both implementations (the lab's transformer and
transformers' Llama), and what is alive at the peak with torch's profiler: `benchmarks/memory.py --allocated`
counts it again. No torch.
"""

from __future__ import annotations

import math
from dataclasses import replace

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
from llmlab.models.headers import checkpoint_shape
from llmlab.models.shapes import ARCHITECTURES, Architecture, CheckpointShape
from llmlab.models.slices import SLICES_ALIVE, slice_rows
from llmlab.planning.live import on_gpu
from llmlab.planning.parameters import DualHeadCount, count_dual_head
from llmlab.planning.start import row_length, start_shape
from llmlab.planning.step import Held, Needs, Passing

# the methods that train the weights of a checkpoint, or an adapter on them
OnCheckpoint = SFTConfig | PretrainConfig | RewardConfig | DPOConfig | RolloutConfig
# values an optimizer keeps for each weight, all in fp32; Adafactor's factored moments are a few rows and
# columns
STATE_VALUES = {"adamw": 2.0, "adafactor": 0.01, "lion": 1.0, "sophia": 3.0, "muon": 1.3}
TILE = (4096, 1 << 15)  # tokens and words of a slice of logits in TRL's loss
TILES_ALIVE = (
    8.25  # of those without Triton: logits, their scaled copies, probabilities, gradients ... in fp32
)
QUANTISED = {"8bit": 1.0, "4bit": 0.53}  # bytes of a weight, its share of the blocks' scales included
RUNTIME = 600e6  # Python, torch and the libraries on the CPU
# of a 4-bit or 8-bit base on the CPU, what making its layers wide again leaves behind: at most, and for each
# weight of them
UNPACKING = 160e6, 6.4
# what the C library on the CPU has freed and cannot use again: it grows with what a layer makes and does not
# keep, and slower than the number of layers, since a later one finds the gaps of those before. Of the
# activations: a factor, and the power of the number of layers that it is divided by; fitted to jobs of
# `benchmarks/fit.py` and `benchmarks/memory.py`, whose other jobs tell whether it holds
FRAGMENTS = {"library": (2.8, 0.5), "adapted": (2.45, 0.3)}
FRAGMENTS_OF_OWN = 0.55  # of the activations: the lab's own layers make little that they do not keep
ADAPTED_OWN = 0.75  # of adapted models of the lab, likewise
NORMS_IN_ONE = 0.5  # of adapted models: norms that are one kernel (LayerNorm) leave less behind
LARGE = 16e6, 0.65  # bytes of a tensor from which on it leaves less behind, and how much
UNTOUCHED = (
    0.3  # of the part of TRL's slice of logits that a small vocabulary leaves empty: the heap grows around it
)
# values that a nonlinearity of several kernels keeps beside its input, in transformers' `activations`
COMPOSED = {
    "gelu_new": 3,
    "gelu_fast": 6,
    "gelu_python": 2,
    "gelu_python_tanh": 3,
    "gelu_accurate": 3,
    "gelu_10": 1,
    "quick_gelu": 1,
}
GROUPS = {"attention": ("attention",), "ffn": ("ffn",), "all-linear": ("attention", "ffn")}


def needs_of(config: TrainingConfig, *, gpu: bool | None = None) -> Needs | None:
    """Returns what a run needs; None where its model's shape is not known here.

    Args:
        config: of the run.
        gpu: whether it is on one; left out, whether it would be here.
    """
    shape = start_shape(config)
    if shape is None:
        return None
    gpu = on_gpu(config) if gpu is None else gpu
    precision = "fp32" if config.precision == "auto" and not gpu else config.precision.replace("auto", "bf16")
    wide = 4 if precision == "fp32" else 2
    own, unused, answers = _own_loss(config, shape), 0.0, 0.0
    if isinstance(config, PretrainConfig) and own:
        held, passing = own_step(
            shape,
            config.batch_size,
            row_length(config, shape),
            wide=wide,
            states=STATE_VALUES[config.optimizer],
            checkpointing=config.gradient_checkpointing,
            accumulates=config.accumulation_steps > 1,
            gpu=gpu,
        )
    elif isinstance(config, DualHeadConfig):
        held, passing = _of_dual_head(config, shape, wide, gpu)
    elif isinstance(config, OnCheckpoint):
        held, passing = _held(config, shape, wide), _passing(config, shape, wide, gpu)
        unused, answers = _untouched(config, shape), _answers(config, shape, wide)
    else:
        return None
    needs = Needs(held, passing, answers, on_gpu=gpu)
    if gpu:
        return needs
    adapted = isinstance(config, AdapterOptions) and config.frozen_base
    unpacks = isinstance(config, AdapterOptions) and adapted and config.quantised != "none"
    runtime = RUNTIME + min(UNPACKING[0], UNPACKING[1] * shape.in_matrices) * unpacks
    if config.gradient_checkpointing:  # memory before speed: freed memory is given back
        return replace(needs, runtime=runtime)
    if own:
        return replace(needs, runtime=runtime, fragments=FRAGMENTS_OF_OWN)
    empty = 0.0 if adapted else UNTOUCHED * unused
    return replace(needs, runtime=runtime, fragments=_fragments(shape, passing, wide, adapted), empty=empty)


def _fragments(shape: CheckpointShape, passing: Passing, wide: int, adapted: bool) -> float:
    """Returns the bytes that the C library cannot use again, for each byte of activations."""
    factor, power = FRAGMENTS["adapted" if adapted else "library"]
    share = factor / math.pow(shape.layers, power)
    if adapted and ARCHITECTURES.get(shape.kind, Architecture()).norm == 2:
        share *= NORMS_IN_ONE
    if adapted and shape.kind == "llmlab":
        share *= ADAPTED_OWN
    tokens = passing.between / (wide * shape.width)
    return share * (LARGE[1] if wide * tokens * shape.feed_forward > LARGE[0] else 1.0)


def own_step(
    shape: CheckpointShape,
    batch_size: int,
    length: int,
    *,
    wide: int,
    states: float,
    checkpointing: bool,
    accumulates: bool,
    gpu: bool = False,
) -> tuple[Held, Passing]:
    """Returns a step on all weights of the lab's own model with its own loss."""
    tokens = batch_size * length
    kept = _own_layer(shape.width, shape.kv_heads * shape.head_dim, shape)
    if shape.dropout and gpu:
        kept += 0.5 * shape.width
    elif shape.dropout:  # a processor keeps what was dropped as values, and all weights of attention
        kept += 2 * shape.width + 3 * shape.heads * length
    layer = wide * tokens * kept
    head = 4.0 * shape.vocabulary * shape.width  # the head's gradient is made beside the others
    held = _ends(
        Held(shape.parameters, states, wide, copies=_copies(shape, wide)), shape, shape.in_matrices * wide
    )
    passing = Passing(
        layer=layer,
        layers=shape.layers,
        between=wide * tokens * shape.width,
        # with the mask that keeps packed documents apart
        beside=wide * (tokens * 2.5 * shape.width + tokens * length),
        logits=4 * min(slice_rows(shape.vocabulary, gpu=gpu), tokens) * shape.vocabulary + head,
        checkpointing=checkpointing,
        accumulates=accumulates,
    )
    return held, passing


def _copies(shape: CheckpointShape, wide: int) -> float:
    """Bytes of the half-precision weights that autocast keeps beside fp32 ones."""
    return shape.parameters * 2 if wide == 2 else 0.0


def _ends(held: Held, shape: CheckpointShape, in_layers: float) -> Held:
    """Returns the same with what is gathered together: a layer, and the embedding."""
    return replace(
        held,
        block=in_layers / shape.layers,
        embedding=held.wide * shape.vocabulary * shape.width,
        tied=shape.tied,
    )


def _own_layer(width: int, kv_width: int, shape: CheckpointShape) -> float:
    """Values a token that a layer of the lab's transformer keeps for its backward pass."""
    return 6 * width + 2 * kv_width + (3 if shape.gated else 2) * shape.feed_forward


def _held(config: OnCheckpoint, shape: CheckpointShape, wide: int) -> Held:
    """A model of transformers', or the lab's own, trained whole or through an adapter."""
    states = STATE_VALUES[config.optimizer]
    fixed = _reward_models(config)
    if config.adapter == "none":
        reference = shape.parameters * 4 if _second_model(config) else 0.0
        held = Held(
            shape.parameters,
            states,
            wide,
            fixed=fixed,
            reference=reference,
            copies=_copies(shape, wide),
        )
        return _ends(held, shape, shape.in_matrices * wide)
    trained = adapter_parameters(config, shape)
    outside = (shape.parameters - shape.in_matrices) * wide
    quantised = config.quantised != "none"
    inside = 0.0 if quantised else float(shape.in_matrices * wide)
    if quantised:
        fixed += shape.in_matrices * QUANTISED[config.quantised]
    held = Held(trained, states, wide, frozen=outside + inside, fixed=fixed, ends_train=False)
    return _ends(held, shape, inside + 4 * trained)


def _passing(config: OnCheckpoint, shape: CheckpointShape, wide: int, gpu: bool) -> Passing:
    rows, length, scored = _batch(config, shape)
    tokens = rows * length
    own = shape.kind == "llmlab"
    mask = wide * tokens * length  # rows are packed, or padded; transformers' kernel keeps one for each layer
    # the head's gradient is made beside the others
    head = 0 if config.adapter != "none" else 4 * shape.vocabulary * shape.width
    return Passing(
        layer=wide * tokens * layer_values(config, shape, length, gpu=gpu) + (0 if own else mask),
        layers=shape.layers,
        between=wide * tokens * shape.width,
        beside=wide * tokens * 2.5 * shape.width + (mask if own else 0),
        logits=_tile(config, rows * scored, shape.vocabulary, wide, gpu) + head if scored else 0.0,
        checkpointing=config.gradient_checkpointing,
        accumulates=config.accumulation_steps > 1,
    )


def _answers(config: OnCheckpoint, shape: CheckpointShape, wide: int) -> float:
    """Bytes of keys and values of the answers of a rollout."""
    if not isinstance(config, RolloutConfig):
        return 0.0
    _, length, _ = _batch(config, shape)
    return config.batch_size * length * 2 * shape.layers * shape.kv_heads * shape.head_dim * wide


def _reward_models(config: OnCheckpoint) -> float:
    """Bytes of the reward models that are on this machine; every device holds them whole, as they were saved
    or in fp32.
    """
    if not isinstance(config, RolloutConfig):
        return 0.0
    names = [source.name for source in config.reward_model if source.kind == "model"]
    return sum(4.0 * shape.parameters for name in names if (shape := checkpoint_shape(name)))


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


def _tile(config: OnCheckpoint, tokens: int, vocabulary: int, wide: int, gpu: bool) -> float:
    """Bytes of the slices of logits in TRL's loss: one on a GPU, changed in place, and several in fp32
    without Triton.

    TRL's trainers set the one aside for all its words, whatever the vocabulary; on the CPU what is never
    touched takes no memory.
    """
    rows, words = min(tokens, TILE[0]), min(vocabulary, TILE[1])
    if gpu:
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


def layer_values(config: OnCheckpoint, shape: CheckpointShape, length: int, *, gpu: bool) -> float:
    """Returns the values a token that a layer keeps for its backward pass, the mask left out.

    Args:
        config: of the run.
        shape: of its model.
        length: tokens of a row.
        gpu: whether it runs on one.
    """
    width, query, kv = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    adapted, own = config.adapter != "none", shape.kind == "llmlab"
    dropped = _dropped(config, shape, length, gpu)
    if own and not adapted:
        return _own_layer(width, kv, shape) + dropped
    wanted = _adapted_groups(config) if adapted else ("attention", "ffn")
    # without adapters transformers' norms keep what they made of their input, too; with a mask its kernel
    # wants keys and values for every head
    layer: float = (5 + ("ffn" in wanted) if adapted else 8) * width + 2 * (kv if own else query)
    layer += _of_norms(shape, 1 if adapted else 2)
    layer += (_of_activation(shape) + ("ffn" in wanted)) * shape.feed_forward
    if adapted and config.lora_dropout:
        # every adapted matrix keeps an input of its own, and which values were dropped
        layer += ("attention" in wanted) * 6 * width + ("ffn" in wanted) * (2.5 * width + shape.feed_forward)
    return layer + dropped


def dropped_values(config: OnCheckpoint, shape: CheckpointShape) -> float:
    """Returns the random numbers a token that dropout draws in a forward pass: the adapter's, the model's."""
    drawn = 0.0
    if config.adapter != "none" and config.lora_dropout:
        wanted = _adapted_groups(config)
        drawn += ("attention" in wanted) * (3 * shape.width + shape.heads * shape.head_dim)
        drawn += ("ffn" in wanted) * ((1 + shape.gated) * shape.width + shape.feed_forward)
    if shape.dropout and not isinstance(config, DPOConfig | RolloutConfig):
        drawn += 2 * shape.width
    return shape.layers * drawn


def _of_norms(shape: CheckpointShape, each: int) -> float:
    """Values a token of the norms beside the two of most models: those of queries and keys, others."""
    architecture = ARCHITECTURES.get(shape.kind, Architecture())
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    on_heads = query + kv if architecture.query_norms else 0
    return each * (on_heads + (architecture.norms - 2) * shape.width)


def _of_activation(shape: CheckpointShape) -> float:
    """Values as wide as the feed-forward layers that their nonlinearity keeps, the input of the last matrix
    left out.
    """
    composed = COMPOSED.get(shape.activation, 0)
    if shape.gated:  # and both factors of the product
        return 3 + composed
    return 1 + composed - (shape.activation == "relu")  # which keeps the last matrix's input alone


def _dropped(config: OnCheckpoint, shape: CheckpointShape, length: int, gpu: bool) -> float:
    """Values a token that a layer keeps of the model's own dropout, and of attention that no fused kernel
    serves.

    A processor keeps what was dropped in the values' own precision, a GPU a byte for each.
    """
    weights = shape.heads * length
    kept = float(weights) if ARCHITECTURES.get(shape.kind, Architecture()).keeps_attention else 0.0
    if isinstance(config, DPOConfig | RolloutConfig):  # which turn it off
        return kept
    kept += 2 * shape.width * (0.25 if gpu else 1.0) * shape.dropout
    if shape.attention_dropout and not gpu:  # the weights, what was dropped of them, and what was left
        kept += 3 * weights
    return kept


def _dual_head(config: DualHeadConfig, shape: CheckpointShape) -> DualHeadCount:
    return count_dual_head(
        shape.width,
        shape.vocabulary,
        gating_size=config.gating_size,
        layer_norm=config.gating_layer_norm,
        rm_bias=config.rm_bias,
    )


def _of_dual_head(
    config: DualHeadConfig, shape: CheckpointShape, wide: int, gpu: bool
) -> tuple[Held, Passing]:
    """Two heads and a gate on a frozen backbone, whose layers keep nothing."""
    count = _dual_head(config, shape)
    quantised = config.load_in != "none"
    frozen = wide * (shape.parameters - (shape.in_matrices if quantised else 0))
    fixed = shape.in_matrices * QUANTISED[config.load_in] if quantised else 0.0
    tokens = 2 * config.micro_batch_size * config.max_length
    rows = min(slice_rows(shape.vocabulary, gpu=gpu, alive=SLICES_ALIVE), tokens)
    logits = 10 * 4 * rows * shape.vocabulary + 4 * count.head  # slices; a head's gradient beside its sum
    passing = (
        wide * tokens * (6 * shape.width + (4 if shape.gated else 2) * shape.feed_forward)
    )  # of a layer, gone at the loss
    held = Held(
        count.trained,
        STATE_VALUES[config.optimizer],
        wide,
        frozen=frozen,
        fixed=fixed,
        ends_train=False,
    )
    return _ends(held, shape, 0.0 if quantised else shape.in_matrices * wide), Passing(
        layer=0.0,
        layers=shape.layers,
        between=0.0,
        beside=4 * tokens * 7 * shape.width + max(0.0, passing - logits),  # of the gate
        logits=logits,
        checkpointing=False,
        accumulates=True,
    )


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
