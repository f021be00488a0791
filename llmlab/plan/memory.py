"""An estimate of the peak memory of a training step."""

from __future__ import annotations

from dataclasses import dataclass

from llmlab.config import ModelConfig
from llmlab.plan.parameters import count_parameters

# values an optimizer keeps for each weight, all in fp32; Adafactor's factored moments are a few rows and columns
STATE_VALUES = {"adamw": 2.0, "adafactor": 0.01, "lion": 1.0, "sophia": 3.0, "muon": 1.3}
LOGITS_ALIVE = 1 << 23  # the loss works through the logits in slices of this many values


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step by part."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All parts together, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def training_memory(
    config: ModelConfig,
    *,
    batch_size: int,
    optimizer: str,
    precision: str,
    gradient_checkpointing: bool,
    length: int | None = None,
) -> TrainingMemory:
    """Returns the estimated bytes of a step that trains all weights, kept in fp32, on `batch_size` rows.

    Activations are those that the backward pass needs: per token and layer about 8 widths, 4 key/value widths and
    3 feed-forward widths (2 without a gate); with checkpointing one width per layer and one layer in full.
    """
    parameters = count_parameters(config).total
    tokens = batch_size * (length or config.max_seq_len)
    value = 4 if precision == "fp32" else 2
    kv_width = config.kv_heads * config.head_dim
    layer = 8 * config.d_model + 4 * kv_width + (3 if config.gated else 2) * config.d_ff
    per_token = config.d_model * config.n_layers + layer if gradient_checkpointing else layer * config.n_layers
    head = config.vocab_size * config.d_model * 4  # the head's gradient is made beside the others
    return TrainingMemory(
        weights=parameters * 4 + (parameters * 2 if value == 2 else 0),
        gradients=parameters * 4,
        optimizer=int(parameters * 4 * STATE_VALUES[optimizer]),
        activations=tokens * (per_token + 3 * config.d_model) * value,
        logits=2 * 4 * min(LOGITS_ALIVE, tokens * config.vocab_size) + head,
    )
