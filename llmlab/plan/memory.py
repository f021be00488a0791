"""An estimate of the peak memory of a training step, by part."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from llmlab.config import DPOConfig, ModelConfig, PretrainConfig, RewardConfig, SFTConfig, load_config
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.plan.checkpoint import CheckpointShape, checkpoint_shape
from llmlab.plan.parameters import count_parameters

# values an optimizer keeps for each weight, all in fp32; Adafactor's factored moments are a few rows and columns
STATE_VALUES = {"adamw": 2.0, "adafactor": 0.01, "lion": 1.0, "sophia": 3.0, "muon": 1.3}
LOGITS_ALIVE = 1 << 23  # the loss works through the logits in slices of this many values
QUANTISED = {"8bit": 1.0, "4bit": 0.53}  # bytes of a weight, its share of the blocks' scales included
RUNTIME = 560e6  # Python, torch and the libraries on the CPU
FRAGMENTS = 0.2  # of everything else: freed memory that the C library keeps on the CPU, which makes steps faster
RECOMPUTED = 4  # layers' worth alive with checkpointing: a layer made anew, its gradients, and what both pass through
GROUPS = {"attention": ("attention",), "ffn": ("ffn",), "all-linear": ("attention", "ffn")}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step by part.

    Attributes:
        weights: of the model, frozen ones included; of a reference where it is alive beside it.
        gradients: of what trains.
        optimizer: its state.
        activations: kept for the backward pass.
        logits: over the vocabulary, with their gradients.
        runtime: Python and the libraries, where they share the device's memory.
        fragments: freed and kept by the C library.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    runtime: float = 0
    fragments: float = 0

    @property
    def total(self) -> float:
        """All parts together, in bytes."""
        return sum(self.parts().values())

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
) -> TrainingMemory:
    """Returns the estimated bytes of a step that trains all weights of the lab's own model, kept in fp32, on `batch_size` rows.

    Activations are those that the backward pass needs: per token and layer about 8 widths, 4 key/value widths and
    3 feed-forward widths (2 without a gate); with checkpointing one width per layer, and a few layers' worth in full.
    """
    parameters = count_parameters(config).total
    tokens = batch_size * (length or config.max_seq_len)
    value = 4 if precision == "fp32" else 2
    kv_width = config.kv_heads * config.head_dim
    layer = 8 * config.d_model + 4 * kv_width + (3 if config.gated else 2) * config.d_ff
    per_token = config.d_model * config.n_layers + RECOMPUTED * layer if gradient_checkpointing else layer * config.n_layers
    head = config.vocab_size * config.d_model * 4  # the head's gradient is made beside the others
    return TrainingMemory(
        weights=parameters * 4 + (parameters * 2 if value == 2 else 0),
        gradients=parameters * 4,
        optimizer=parameters * 4 * STATE_VALUES[optimizer],
        activations=tokens * (per_token + 3 * config.d_model) * value,
        logits=2 * 4 * min(LOGITS_ALIVE, tokens * config.vocab_size) + head,
    )


def predicted(config: TrainingConfig) -> TrainingMemory | None:
    """Returns the estimated peak of a run on this machine; None where its model's shape is not known here."""
    on_gpu = has_nvidia() and config.device in ("auto", "cuda")
    precision = "fp32" if config.precision == "auto" and not on_gpu else config.precision.replace("auto", "bf16")
    runtime = 0.0 if on_gpu else RUNTIME
    if isinstance(config, PretrainConfig):
        shape = config.model if isinstance(config.model, ModelConfig) else _loaded(str(config.model))
        if not isinstance(shape, ModelConfig):
            return None
        made = training_memory(
            shape, batch_size=config.batch_size, optimizer=config.optimizer, precision=precision,
            gradient_checkpointing=config.gradient_checkpointing,
        )  # fmt: skip
        return _with_runtime(made, runtime)
    if not isinstance(config, (SFTConfig, DPOConfig, RewardConfig)):
        return None
    found = checkpoint_shape(config.policy_checkpoint)
    return _with_runtime(_of_checkpoint(config, found, precision), runtime) if found else None


def _with_runtime(made: TrainingMemory, runtime: float) -> TrainingMemory:
    return replace(made, runtime=runtime, fragments=FRAGMENTS * made.total if runtime else 0.0)


def _of_checkpoint(config: Any, shape: CheckpointShape, precision: str) -> TrainingMemory:
    """A model of the library's, or the lab's own, trained whole or through an adapter."""
    wide = 4 if precision == "fp32" else 2
    adapted = config.adapter != "none"
    trained = adapter_parameters(config, shape) if adapted else shape.parameters
    outside = shape.parameters - shape.in_matrices
    if config.quantised != "none":
        weights = shape.in_matrices * QUANTISED[config.quantised] + outside * wide
    else:
        weights = shape.parameters * (wide if adapted else 4) + (0 if adapted or wide == 4 else shape.parameters * 2)
    weights += 4 * trained if adapted else 0
    if isinstance(config, DPOConfig) and config.reference == "live" and not adapted:
        weights += shape.parameters * 4
    rows = 2 if isinstance(config, (DPOConfig, RewardConfig)) else 1  # both answers
    tokens = rows * config.micro_batch_size * config.max_length
    kv_width = shape.kv_heads * shape.head_dim
    # of the library's modules: inputs and outputs of both norms, queries, attention, keys and values, the feed-forward's parts
    layer = 9 * shape.width + 4 * kv_width + (4 if shape.gated else 3) * shape.feed_forward
    if adapted and config.lora_dropout:  # every adapted matrix keeps its own dropped-out input, and which values were dropped
        layer += int(1.25 * (6 * shape.width + shape.feed_forward))
    per_token = shape.width * shape.layers + RECOMPUTED * layer if config.gradient_checkpointing else layer * shape.layers
    # logits, their gradients, and for whole logits of SFT the library's figures (entropy, accuracy), which with all weights in
    # training are outweighed by the update
    copies = 1 if shape.kind == "llmlab" else 10 if adapted and isinstance(config, SFTConfig) else 3
    scored = tokens * 4 * shape.vocabulary * copies
    return TrainingMemory(
        weights=weights,
        gradients=4 * trained,
        optimizer=4 * trained * STATE_VALUES[config.optimizer],
        activations=tokens * per_token * wide,
        logits=scored,
    )


def adapter_parameters(config: Any, shape: CheckpointShape) -> int:
    """Returns the weights of a LoRA adapter: rank times the rows and columns of every matrix that gets one."""
    wanted = GROUPS.get(config.lora_targets, ("attention", "ffn")) if isinstance(config.lora_targets, str) else ("attention",)
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sides = {
        "attention": 2 * (shape.width + query) + 2 * (shape.width + kv),
        "ffn": (3 if shape.gated else 2) * (shape.width + shape.feed_forward),
    }
    return config.lora_r * shape.layers * sum(sides[group] for group in wanted)


def has_nvidia() -> bool:
    """Returns whether an NVIDIA device is there, without loading torch."""
    return Path("/proc/driver/nvidia/version").exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") != ""


def _loaded(path: str) -> Any:
    try:
        return load_config(path)
    except LabError:
        return None
