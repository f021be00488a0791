"""What is unusual about a run, whether it fits, and what would make it fit. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmlab.config import LabBaseConfig, PretrainConfig
from llmlab.config.adapters import AdapterOptions
from llmlab.config.batches import AccumulatedBatches
from llmlab.config.loader import apply_changes
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.sources import SourceConfig
from llmlab.config.training import SHORTEST, TrainingConfig
from llmlab.errors import LabError
from llmlab.planning.duration import TimePlan, time_plan
from llmlab.planning.engines import Verdict, need_in_effect, usable
from llmlab.planning.live import on_gpu
from llmlab.planning.processes import processes_of
from llmlab.planning.start import start_shape

SMALL = 20_000_000  # parameters; what is smaller bears and needs more
MACHINE = 8  # devices of one machine at most, in what is proposed
MACHINES = 8  # machines at most


@dataclass(frozen=True)
class UnusualRate:
    """A learning rate outside what a method usually takes; `end` is the end of the range on that side."""

    rate: float
    kind: str
    end: float


@dataclass(frozen=True)
class BeyondContext:
    """Rows of `max_length` tokens, where the model was made for `positions`; `option` says so many."""

    max_length: int
    positions: int
    option: str = "max_length"


@dataclass(frozen=True)
class ValidatedOnTraining:
    """A source that stands among the training data and the evaluation data."""

    source: SourceConfig


@dataclass(frozen=True)
class TooLarge:
    """More bytes are needed on a device than are free there."""

    needed: float
    free: int


@dataclass(frozen=True)
class HostTooSmall:
    """Offload puts more bytes into the machine's memory than are free there."""

    needed: float
    free: int


@dataclass(frozen=True)
class TooManyPasses:
    """Base training reads its text more often than it gains from: up to 4 passes are nearly as good as new
    text, and what comes after 16 is worth next to nothing (Muennighoff et al. 2023, sections 5 and 6).
    """

    passes: float


@dataclass(frozen=True)
class LongRun:
    """A run of more than a day on this device."""

    seconds: float


@dataclass(frozen=True)
class NeverValidated:
    """`option`, an interval of `every` steps, is longer than the run of `steps`."""

    option: str
    every: int
    steps: int


Concern = (
    UnusualRate
    | BeyondContext
    | ValidatedOnTraining
    | TooLarge
    | HostTooSmall
    | TooManyPasses
    | LongRun
    | NeverValidated
)
TIME_CONCERNS = (TooManyPasses, LongRun, NeverValidated)
MOST_PASSES = 5
DAY = 86_400


# the options that a concern is about
ABOUT: dict[type[Concern], tuple[str, ...]] = {
    UnusualRate: ("learning_rate",),
    BeyondContext: ("max_length", "max_prompt_length", "max_new_tokens"),
    ValidatedOnTraining: ("datasets", "eval_datasets"),
    NeverValidated: ("eval_every", "evaluate_every", "max_steps"),
    LongRun: ("max_steps", "epochs"),
    TooManyPasses: ("epochs", "max_steps", "datasets"),
}


def concerns_about(config: LabBaseConfig, option: str) -> list[Concern]:
    """Returns what is unusual about one option of a run, with the values of the others."""
    if not isinstance(config, TrainingConfig) or not any(option in about for about in ABOUT.values()):
        return []
    every = [*concerns(config), *time_concerns(config, time_plan(config))]
    return [concern for concern in every if option in ABOUT.get(type(concern), ())]


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
    if shape is not None and (beyond := _beyond_context(config, shape.longest)):
        result.append(beyond)
    trained = {(s.name, s.subset, s.split) for s in config.datasets}
    result += [
        ValidatedOnTraining(source)
        for source in config.eval_datasets
        if (source.name, source.subset, source.split) in trained
    ]
    need = need_in_effect(config)
    if need is not None and need.total > need.free:
        result.append(TooLarge(need.total, need.free))
    if need is not None and need.host > need.host_free:
        result.append(HostTooSmall(need.host, need.host_free))
    return result


def _beyond_context(config: TrainingConfig, positions: int | None) -> BeyondContext | None:
    if isinstance(config, RolloutConfig):
        length, option = (
            config.max_prompt_length + config.max_new_tokens,
            "max_prompt_length` + `max_new_tokens",
        )
    else:
        length, option = getattr(config, "max_length", None) or 0, "max_length"
    return BeyondContext(length, positions, option) if positions and length > positions else None


def time_concerns(config: TrainingConfig, time: TimePlan) -> list[Concern]:
    """Returns what a person would want to know of the length of a run."""
    result: list[Concern] = []
    if isinstance(config, PretrainConfig) and time.passes is not None and time.passes > MOST_PASSES:
        result.append(TooManyPasses(time.passes))
    if time.seconds is not None and time.seconds > DAY:
        result.append(LongRun(time.seconds))
    validates = bool(config.eval_datasets or config.eval_fraction)
    if time.steps and validates and config.eval_interval > max(time.steps, SHORTEST):
        result.append(NeverValidated("eval_every", config.eval_interval, time.steps))
    if time.steps and config.evaluate_every and config.evaluate_every > time.steps:
        result.append(NeverValidated("evaluate_every", config.evaluate_every, time.steps))
    return result


@dataclass(frozen=True)
class WayToFit:
    """Changes of options that would make a run fit, and the bytes of a device that it would need then."""

    changes: dict[str, Any]
    total: float


def ways_to_fit(config: LabBaseConfig) -> list[WayToFit]:
    """Returns what would make a run fit that does not; nothing where it does, or nothing would."""
    if not isinstance(config, TrainingConfig):
        return []
    need = need_in_effect(config)
    if need is None or need.fits:
        return []
    ways = [way for start in _families(config) if (way := _with_smaller_batches(config, start))]
    return ways + [way for series in _more_devices(config) if (way := _first_that_fits(config, series))]


def _with_smaller_batches(config: TrainingConfig, start: dict[str, Any]) -> WayToFit | None:
    """Returns the changes to begin with, and the largest micro-batch that fits with them."""
    changes, changed = dict(start), _changed(config, start)
    while changed is not None and (need := need_in_effect(changed)) is not None:
        if need.fits:
            return WayToFit(changes, need.total)
        halved = _halved(changed)
        if not halved:
            return None
        changes |= halved
        changed = _changed(config, changes)
    return None


def _first_that_fits(config: TrainingConfig, series: list[dict[str, Any]]) -> WayToFit | None:
    for changes in series:
        changed = _changed(config, changes)
        if changed is not None and (need := need_in_effect(changed)) is not None and need.fits:
            return WayToFit(changes, need.total)
    return None


def _more_devices(config: TrainingConfig) -> list[list[dict[str, Any]]]:
    """Returns series of changes, of which the first that fits is proposed: ever more GPUs, and machines.

    The effective batch stays where it can be divided by them. Processes that share the memory of one machine
    need more of it, not less: without GPUs nothing is proposed.
    """
    if not on_gpu(config) or processes_of(config) != config.devices * config.nodes:
        return []
    counts = [(2**i, config.nodes) for i in range(1, 4) if 2**i > config.devices]
    counts += [(max(MACHINE, config.devices), n) for n in (2, 4, MACHINES) if n > config.nodes]
    series: list[dict[str, Any]] = []
    for devices, nodes in counts:
        changes: dict[str, Any] = {"devices": devices}
        changes |= {"nodes": nodes} if nodes != config.nodes else {}
        changes |= {"parallel": "auto"} if config.parallel == "ddp" else {}
        series.append(changes | _fewer_passes(config, devices * nodes // (config.devices * config.nodes)))
    return [series]


def _fewer_passes(config: TrainingConfig, times: int) -> dict[str, Any]:
    """Returns the changes that keep the effective batch on so many times the devices; none where the passes
    of an update cannot be divided by them.
    """
    if times < 2 or config.accumulation_steps % times:
        return {}
    if isinstance(config, AccumulatedBatches):
        return {"gradient_accumulation_steps": config.accumulation_steps // times}
    return {"batch_size": config.micro_batch_size * config.accumulation_steps // times}


def _families(config: TrainingConfig) -> list[dict[str, Any]]:
    """Where to begin: smaller micro-batches alone, then with sharding, offload, checkpointing, adapters."""
    families: list[dict[str, Any]] = [{}]
    families += _sharding(config)
    if not config.gradient_checkpointing:
        families.append({"gradient_checkpointing": True})
    new = isinstance(config, PretrainConfig) and config.init_from is None
    if isinstance(config, AdapterOptions) and not config.frozen_base and not new:
        families += [{"adapter": "lora"}, {"adapter": "qlora", "gradient_checkpointing": True}]
    elif new and config.optimizer != "adafactor":
        families.append({"optimizer": "adafactor", "gradient_checkpointing": True})
    return families


def _sharding(config: TrainingConfig) -> list[dict[str, Any]]:
    """Returns what several GPUs can still divide, and move to the machine's memory; accelerate shards on them
    alone.
    """
    if not on_gpu(config) or processes_of(config) == 1 or "fsdp2" not in usable(config):
        return []
    divided: dict[str, Any] = {"parallel": "fsdp2"} if config.parallel in ("ddp", "auto", "zero2") else {}
    ways = [divided] if config.parallel in ("ddp", "zero2") else []
    if config.cpu_offload:
        ways.append({"cpu_offload": False})
    else:
        ways.append({**divided, "cpu_offload": True})
    return ways


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
    need = need_in_effect(config) if isinstance(config, TrainingConfig) else None
    return need.verdict if need else None
