"""Which engine lets several devices share a run, chosen by what each device would have to hold. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmlab.config.hardware import DEEPSPEED, SHARDED, Engine
from llmlab.config.training import TrainingConfig
from llmlab.hardware import host_memory
from llmlab.planning.live import device_memory
from llmlab.planning.machines import Machine
from llmlab.planning.needs import needs_of
from llmlab.planning.processes import local_processes_of, processes_of
from llmlab.planning.sharding import EngineInEffect, on_a_device
from llmlab.planning.step import Needs, TrainingMemory

FILL = 0.9  # of the free memory that a run may be expected to take
# from the least sharding to the most; DeepSpeed is a package of its own: only where it is asked for
AUTOMATIC: tuple[Engine, ...] = ("ddp", "fsdp2")
# optimizers that need a gradient whole, which no device of a sharded run has
NEEDS_WHOLE = {
    "sophia": "its curvature estimate needs the whole gradient of every weight",
    "adafactor": "PyTorch's norms over rows and columns need whole matrices",
}
# the same under DeepSpeed, which updates flat pieces of many weights
NEEDS_SHAPES = {**NEEDS_WHOLE, "muon": "it needs whole matrices, and DeepSpeed updates flat pieces of them"}
NEEDS_MATRICES = "it needs whole matrices, and each device has a part of every one"

Verdict = Literal["fits", "tight", "does not fit"]
Why = Literal["one process", "asked for", "not known", "no GPUs", "least that fits", "nothing fits"]


@dataclass(frozen=True)
class EngineNeed:
    """What one device has to hold under an engine.

    Attributes:
        engine: how the devices share the work; "none" for one device.
        cpu_offload: whether what is divided lies in the machine's memory.
        memory: of a device at the peak, by part.
        free: bytes that are free on the fullest device.
        host: bytes that all processes of this machine put into its own memory by offload.
        host_free: bytes that are free there.
        on_gpu: whether the device is a GPU.
    """

    engine: EngineInEffect
    cpu_offload: bool
    memory: TrainingMemory
    free: int
    host: float
    host_free: int
    on_gpu: bool

    @property
    def total(self) -> float:
        """Bytes of a device at the peak."""
        return self.memory.total

    @property
    def fits(self) -> bool:
        """Whether device and machine can be expected to hold that."""
        return self.total < FILL * self.free and (not self.host or self.host < FILL * self.host_free)

    @property
    def verdict(self) -> Verdict:
        """Whether it fits, on the device and in the machine's memory."""
        on_device = fit(self.total, self.free)
        if on_device != "does not fit" and self.host and self.host >= self.host_free:
            return "does not fit"
        return on_device


@dataclass(frozen=True)
class Choice:
    """An engine, and why it was chosen.

    Attributes:
        engine: how the processes share the work; "none" for one process.
        why: "one process"; "asked for" by the config; "not known" how much it needs: `ddp` is taken; "no
            GPUs", without which accelerate shards nothing: `ddp` is taken; "least that fits": the least
            sharding whose need fits; "nothing fits": the smallest need is taken.
        looked_at: what a device needs under each engine that the method can use; nothing where it is not
            known.
    """

    engine: EngineInEffect
    why: Why
    looked_at: tuple[EngineNeed, ...] = ()

    @property
    def need(self) -> EngineNeed | None:
        """What a device needs under the engine that was chosen; None where it is not known."""
        return next((need for need in self.looked_at if need.engine == self.engine), None)


def choose_engine(config: TrainingConfig, *, devices: int, machine: Machine | None = None) -> Choice:
    """Returns how the devices of a run share its work.

    The answer depends on the memory that is free at this moment: the processes of a job must not ask each for
    itself, one asks and tells the others.

    Args:
        config: of the run; `parallel` other than "auto" is taken as it is.
        devices: processes of the whole job, over all nodes.
        machine: that it is planned for; left out, this one.
    """
    needs = needs_of(config, gpu=machine.on_gpu if machine else None)
    if devices == 1:
        return Choice("none", "one process", (_need(config, needs, "none", 1, machine),) if needs else ())
    if config.tensor_parallel > 1:
        divided = (_need(config, needs, "tensor", devices, machine),) if needs else ()
        return Choice("tensor", "asked for", divided)
    engines = usable(config) if needs else ()
    looked_at = tuple(_need(config, needs, engine, devices, machine) for engine in engines if needs)
    if config.parallel != "auto":
        return Choice(config.parallel, "asked for", looked_at)
    if not looked_at:
        return Choice("ddp", "not known")
    if not any(need.on_gpu for need in looked_at):
        return Choice("ddp", "no GPUs", looked_at)
    automatic = [need for need in looked_at if need.engine in AUTOMATIC]
    for need in automatic:
        if need.fits:
            return Choice(need.engine, "least that fits", looked_at)
    return Choice(min(automatic, key=lambda need: need.total).engine, "nothing fits", looked_at)


def usable(config: TrainingConfig) -> tuple[Engine, ...]:
    """Returns the engines that the method and the optimizer of a run can use."""
    return tuple(e for e in type(config).ENGINES if not whats_wrong(config.optimizer, e))


def whats_wrong(optimizer: str, engine: EngineInEffect) -> str:
    """Returns why an optimizer cannot be used under an engine; "" where it can."""
    if engine == "tensor":
        return "" if optimizer in ("adamw", "lion") else NEEDS_WHOLE.get(optimizer, NEEDS_MATRICES)
    if engine in DEEPSPEED:
        return NEEDS_SHAPES.get(optimizer, "")
    return NEEDS_WHOLE.get(optimizer, "") if engine in SHARDED else ""


def need_in_effect(config: TrainingConfig) -> EngineNeed | None:
    """Returns what each device of a run needs under the engine that it would use; None where its model's
    shape is not known here.
    """
    return choose_engine(config, devices=processes_of(config)).need


def fit(needed: float, free: float) -> Verdict:
    """Returns whether bytes that are needed fit into bytes that are free."""
    return "fits" if needed < 0.8 * free else "tight" if needed < free else "does not fit"


def _need(
    config: TrainingConfig, needs: Needs, engine: EngineInEffect, devices: int, machine: Machine | None
) -> EngineNeed:
    # without a GPU there is one memory, and nothing to move
    offload = config.cpu_offload and engine in SHARDED and needs.on_gpu
    one = on_a_device(needs, engine, devices, offload=offload)
    memory, host = one.device, one.host * local_processes_of(config)
    free = machine.free if machine else device_memory(config)
    host_free = machine.host_free if machine else host_memory()
    return EngineNeed(engine, offload, memory, free, host, host_free, needs.on_gpu)
