"""An estimate of the peak memory of a training step on each device, by part, and of what a run writes.
No torch.
"""

from __future__ import annotations

from llmlab.config import ModelConfig
from llmlab.config.training import TrainingConfig
from llmlab.planning.engines import need_in_effect
from llmlab.planning.needs import STATE_VALUES, own_step, trained_parameters
from llmlab.planning.sharding import on_a_device
from llmlab.planning.start import shape_of
from llmlab.planning.step import Needs, TrainingMemory


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
    """Returns the estimated bytes of a step on `batch_size` rows on one device; all weights of the lab's own
    model train, kept in fp32.
    """
    held, passing = own_step(
        shape_of(config),
        batch_size,
        length or config.max_seq_len,
        wide=4 if precision == "fp32" else 2,
        states=STATE_VALUES[optimizer],
        checkpointing=gradient_checkpointing,
        accumulates=accumulates,
    )
    return on_a_device(Needs(held, passing), "none", 1).device


def predicted(config: TrainingConfig) -> TrainingMemory | None:
    """Returns the estimated peak of a run on each of its devices, under the engine that it would use; None
    where its model's shape is not known here.
    """
    need = need_in_effect(config)
    return need.memory if need else None


def checkpoint_bytes(config: TrainingConfig) -> float:
    """Returns what a run writes at most: checkpoints with the optimizer's state, one more while it saves,
    `best` and `final`; 0 where its model's shape is not known here.

    Devices that share a model write one copy of it together.
    """
    saved = one_checkpoint_bytes(config)
    return saved * (config.save_total_limit + 1) + 2 * 4 * trained_parameters(config)


def one_checkpoint_bytes(config: TrainingConfig) -> float:
    """Returns what a checkpoint takes: the weights that learn and the optimizer's state, once, in fp32."""
    return 4 * trained_parameters(config) * (1 + max(2.0, STATE_VALUES[config.optimizer]))
