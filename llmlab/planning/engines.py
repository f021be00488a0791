"""Which engine lets several devices share a run, chosen by what each device would have to hold. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmlab.config.hardware import Engine
from llmlab.config.training import TrainingConfig
from llmlab.planning.live import available_memory
from llmlab.planning.memory import TrainingMemory, predicted

FILL = 0.9  # of the free memory that a run may be expected to take
# from the least sharding to the most; DeepSpeed is a package of its own: only where it is asked for
AUTOMATIC: tuple[Engine, ...] = ("ddp", "fsdp2")

Why = Literal["one process", "asked for", "not known", "least that fits", "nothing fits"]


@dataclass(frozen=True)
class EngineNeed:
    """What one device has to hold under an engine.

    Attributes:
        engine: how the devices share the work.
        needed: bytes of a device at the peak.
        free: bytes that are free on the fullest device.
    """

    engine: Engine
    needed: float
    free: int

    @property
    def fits(self) -> bool:
        """Whether a device can be expected to hold that."""
        return self.needed < FILL * self.free


@dataclass(frozen=True)
class Choice:
    """An engine, and why it was chosen.

    Attributes:
        engine: how the processes share the work; "none" for one process.
        why: "one process"; "asked for" by the config; "not known" how much it needs: `ddp` is taken;
            "least that fits": the least sharding whose need fits; "nothing fits": the smallest need is taken.
        looked_at: what a device needs under each engine that was looked at.
    """

    engine: Engine | Literal["none"]
    why: Why
    looked_at: tuple[EngineNeed, ...] = ()


def choose_engine(config: TrainingConfig, *, devices: int) -> Choice:
    """Returns how the devices of a run share its work.

    The answer depends on the memory that is free at this moment: the processes of a job must not ask each for
    itself, one asks and tells the others.

    Args:
        config: of the run; `parallel` other than "auto" is taken as it is.
        devices: processes of the whole job, over all nodes.
    """
    if devices == 1:
        return Choice("none", "one process")
    if config.parallel != "auto":
        return Choice(config.parallel, "asked for")
    memory = predicted(config)
    if memory is None:
        return Choice("ddp", "not known")
    free = available_memory()
    engines = [engine for engine in AUTOMATIC if engine in type(config).ENGINES]
    needs = tuple(EngineNeed(engine, _needed(memory, engine, devices), free) for engine in engines)
    for need in needs:
        if need.fits:
            return Choice(need.engine, "least that fits", needs)
    return Choice(min(needs, key=lambda need: need.needed).engine, "nothing fits", needs)


def _needed(memory: TrainingMemory, engine: Engine, devices: int) -> float:
    held = memory.weights + memory.gradients + memory.optimizer
    if engine == "ddp":
        return memory.total + memory.gradients
    return memory.total - held + held / devices
