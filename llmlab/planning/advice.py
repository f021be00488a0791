"""What is unusual about a run, whether it fits, and what would make it fit. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from llmlab.config import LabBaseConfig, PretrainConfig
from llmlab.config.adapters import AdapterOptions
from llmlab.config.batches import AccumulatedBatches
from llmlab.config.loader import apply_changes
from llmlab.config.sources import SourceConfig
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.planning.live import available_memory
from llmlab.planning.memory import predicted
from llmlab.planning.start import start_shape

SMALL = 20_000_000  # parameters; what is smaller bears and needs more
FILL = 0.9  # of the free memory that a run may be expected to take


@dataclass(frozen=True)
class UnusualRate:
    """A learning rate outside what a method usually takes; `end` is the end of the range on that side."""

    rate: float
    kind: str
    end: float


@dataclass(frozen=True)
class BeyondContext:
    """Rows of `max_length` tokens, where the model was made for `positions`."""

    max_length: int
    positions: int


@dataclass(frozen=True)
class ValidatedOnTraining:
    """A source that stands among the training data and the evaluation data."""

    source: SourceConfig


@dataclass(frozen=True)
class TooLarge:
    """More bytes are needed than are free."""

    needed: float
    free: int


Concern = UnusualRate | BeyondContext | ValidatedOnTraining | TooLarge
Verdict = Literal["fits", "tight", "does not fit"]


def concerns(config: LabBaseConfig) -> list[Concern]:
    """Returns what a person would want to know before the run begins."""
    if not isinstance(config, TrainingConfig):
        return []
    result: list[Concern] = []
    new = isinstance(config, PretrainConfig) and config.init_from is None
    shape = None if new else start_shape(config)
    low, high = config.usual_rates
    if config.optimizer == "lion":
        low, high = low / 10, high / 3
    if shape is not None and shape.parameters < SMALL:
        high *= 100
    if not low <= config.learning_rate <= high:
        end = high if config.learning_rate > high else low
        result.append(UnusualRate(config.learning_rate, config.kind, end))
    length = getattr(config, "max_length", None)
    if length and shape is not None and shape.longest and length > shape.longest:
        result.append(BeyondContext(length, shape.longest))
    trained = {(s.name, s.subset, s.split) for s in config.datasets}
    result += [
        ValidatedOnTraining(source)
        for source in config.eval_datasets
        if (source.name, source.subset, source.split) in trained
    ]
    memory = predicted(config)
    if memory is not None and memory.total > available_memory():
        result.append(TooLarge(memory.total, available_memory()))
    return result


@dataclass(frozen=True)
class WayToFit:
    """Changes of options that would make a run fit, and the bytes that it would need then."""

    changes: dict[str, Any]
    total: float


def ways_to_fit(config: LabBaseConfig) -> list[WayToFit]:
    """Returns what would make a run fit that does not; nothing where it does, or nothing would."""
    if not isinstance(config, TrainingConfig):
        return []
    memory, free = predicted(config), available_memory()
    if memory is None or memory.total < FILL * free:
        return []
    ways = []
    for start in _families(config):
        changes, changed = dict(start), _changed(config, start)
        while changed is not None and (needed := predicted(changed)) is not None:
            if needed.total < FILL * free:
                ways.append(WayToFit(changes, needed.total))
                break
            halved = _halved(changed)
            if not halved:
                break
            changes |= halved
            changed = _changed(config, changes)
    return ways


def _families(config: TrainingConfig) -> list[dict[str, Any]]:
    """Where to begin: smaller micro-batches alone, then with checkpointing, then with adapters."""
    families: list[dict[str, Any]] = [{}]
    if not config.gradient_checkpointing:
        families.append({"gradient_checkpointing": True})
    new = isinstance(config, PretrainConfig) and config.init_from is None
    if isinstance(config, AdapterOptions) and not config.frozen_base and not new:
        families += [{"adapter": "lora"}, {"adapter": "qlora", "gradient_checkpointing": True}]
    elif new and config.optimizer != "adafactor":
        families.append({"optimizer": "adafactor", "gradient_checkpointing": True})
    return families


def _halved(config: TrainingConfig) -> dict[str, Any]:
    """Returns the changes that halve a micro-batch and keep the effective batch; none at one row."""
    if config.micro_batch_size % 2:
        return {}
    if not isinstance(config, AccumulatedBatches):
        return {"mini_batch_size": config.micro_batch_size // 2}
    return {
        "batch_size": config.batch_size // 2,
        "gradient_accumulation_steps": config.gradient_accumulation_steps * 2,
    }


def _changed(config: TrainingConfig, changes: dict[str, Any]) -> TrainingConfig | None:
    try:
        return apply_changes(config, changes)
    except LabError:
        return None


def verdict(config: LabBaseConfig) -> Verdict | None:
    """Returns whether a run fits into the memory that is free here; None where it is not known."""
    memory = predicted(config) if isinstance(config, TrainingConfig) else None
    return fit(memory.total, available_memory()) if memory else None


def fit(needed: float, free: float) -> Verdict:
    """Returns whether bytes that are needed fit into bytes that are free."""
    return "fits" if needed < 0.8 * free else "tight" if needed < free else "does not fit"
