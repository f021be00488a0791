"""What a run computes on: device, number format, kernels, and how several devices share the work."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from llmlab.config.base import KindConfig
from llmlab.config.options import option

Engine = Literal["ddp", "fsdp2", "zero2", "zero3"]

SHARDED = ["fsdp2", "zero2", "zero3"]  # engines that divide what one device would hold whole
DEEPSPEED = ["zero2", "zero3"]
PARALLEL = {
    "auto": "the least sharding whose memory plan fits the devices",
    "ddp": "every device holds the whole model, and gradients are averaged: the fastest where it fits",
    "fsdp2": "weights, gradients and optimizer states are divided over the devices (PyTorch)",
    "zero2": "gradients and optimizer states are divided, weights are whole (DeepSpeed)",
    "zero3": "all of them are divided, like fsdp2 (DeepSpeed)",
}
SECTION = "Hardware"


class HardwareOptions(KindConfig):
    """Device, precision, kernels, and the devices that work together.

    Attributes:
        ENGINES: how several devices can share the work of this method.
        NO_TENSOR_PARALLEL: why devices cannot share a layer with this method; "" where they can.
    """

    ENGINES: ClassVar[tuple[Engine, ...]] = ("ddp", "fsdp2", "zero2", "zero3")
    NO_TENSOR_PARALLEL: ClassVar[str] = ""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Precision",
        "Number format of the matrix products.",
        choices={
            "auto": "bf16 on a GPU that has it, else fp32",
            "fp32": "exact; twice the memory and a fraction of the speed on GPUs",
            "bf16": "the usual choice on current GPUs",
            "fp16": "for older GPUs, with loss scaling",
        },
        section=SECTION,
    )
    gradient_checkpointing: bool = option(
        False,
        "Gradient checkpointing",
        "Recompute activations in the backward pass: less memory, a third slower.",
        advanced=True,
        section=SECTION,
    )
    compile: bool = option(
        False,
        "Compile",
        "torch.compile the model: a slow start, faster steps.",
        advanced=True,
        section=SECTION,
    )
    attention_backend: Literal["auto", "sdpa", "flex", "flash", "eager"] = option(
        "auto",
        "Attention backend",
        "Which kernel computes attention; the one in use is recorded in run.json.",
        choices={
            "auto": "sdpa where the architecture and the device support it, else eager; for packed rows the"
            " kernel that `llmlab selftest` found faster on this device",
            "sdpa": "PyTorch's fused kernels: the usual choice",
            "flex": "PyTorch's compiled attention: fast for packed rows on GPUs",
            "flash": "the flash-attn package, where it is installed",
            "eager": "plain matrix products: for debugging",
        },
        advanced=True,
        section=SECTION,
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = option(
        "auto",
        "Device",
        "The device to train on.",
        choices={
            "auto": "the best that is found",
            "cuda": "an NVIDIA GPU",
            "mps": "an Apple GPU",
            "cpu": "the processor",
        },
        advanced=True,
        resume="silent",
        section=SECTION,
    )
    devices: int = option(
        1,
        "Devices",
        "Devices of one machine that train together, one process each; `llmlab run` starts the processes.",
        typical="the GPUs of the machine",
        advanced=True,
        resume="silent",
        ge=1,
        le=1024,
        section=SECTION,
    )
    nodes: int = option(
        1,
        "Nodes",
        "Machines that train together, each with so many devices; `llmlab run` is started on every one of"
        " them.",
        advanced=True,
        resume="silent",
        ge=1,
        le=4096,
        section=SECTION,
    )
    parallel: Literal["auto", "ddp", "fsdp2", "zero2", "zero3"] = option(
        "auto",
        "Parallel",
        "How several devices share the work.",
        choices=PARALLEL,
        advanced=True,
        resume="silent",
        section=SECTION,
    )
    tensor_parallel: int = option(
        1,
        "Tensor parallel",
        "Devices that compute every layer together, on the same rows: for models whose layers are too large"
        " for one device. All devices of the run, or 1: each computes whole layers.",
        typical="1; else the GPUs of one machine",
        advanced=True,
        resume="silent",
        ge=1,
        le=64,
        section=SECTION,
    )
    cpu_offload: bool = option(
        False,
        "CPU offload",
        "Keep what is divided over the devices in the machine's memory, and move it when it is needed: much"
        " slower, for models that fit in no other way.",
        applies_when={"parallel": SHARDED},
        advanced=True,
        resume="silent",
        section=SECTION,
    )
    deepspeed_config: str | None = option(
        None,
        "DeepSpeed file",
        "A JSON file of DeepSpeed settings; what it sets replaces what the lab would set.",
        applies_when={"parallel": DEEPSPEED},
        advanced=True,
        resume="silent",
        min_length=1,
        section=SECTION,
    )
    process_timeout: int = option(
        1800,
        "Process timeout",
        "How long a process waits for the others before the run ends and says which one is late.",
        unit="seconds",
        typical="600 to 3600",
        advanced=True,
        resume="silent",
        ge=10,
        le=86_400,
        section=SECTION,
    )
    restarts: int = option(
        0,
        "Restarts",
        "How often the processes are started again, from the last checkpoint, after one of them has failed.",
        typical="0 to 3",
        advanced=True,
        resume="silent",
        ge=0,
        le=100,
        section=SECTION,
    )

    price_per_hour: float | None = option(
        None,
        "Price per hour",
        "Of one device, in a currency of yours; plans and the run's record then say what the run costs.",
        advanced=True,
        resume="silent",
        ge=0,
        section=SECTION,
    )

    def replicas(self, processes: int) -> int:
        """Returns how many of so many processes have rows of their own."""
        return max(1, processes // self.tensor_parallel)

    @model_validator(mode="after")
    def _check_tensor_parallel(self) -> HardwareOptions:
        if self.tensor_parallel == 1:
            return self
        size = f"`tensor_parallel` {self.tensor_parallel}"
        if self.NO_TENSOR_PARALLEL:
            raise ValueError(f"{size} does not work for {self.KIND}: {self.NO_TENSOR_PARALLEL}")
        if getattr(self, "adapter", "none") != "none":
            raise ValueError(
                f"{size} does not work with an adapter, whose weights are not divided: set it to 1, and use"
                ' `parallel` "fsdp2" where the model is too large for a device'
            )
        if (devices := self.devices * self.nodes) not in (1, self.tensor_parallel):
            raise ValueError(
                f"{size}: `devices` x `nodes` is {devices}, and all of them have to share a layer"
            )
        if self.parallel != "auto" or self.cpu_offload or self.compile:
            raise ValueError(
                f'{size} does not work with `parallel` "{self.parallel}", `cpu_offload` or `compile`:'
                " leave them out"
            )
        return self

    @model_validator(mode="after")
    def _check_engine(self) -> HardwareOptions:
        if self.parallel != "auto" and self.parallel not in self.ENGINES:
            raise ValueError(
                f'`parallel` "{self.parallel}" does not work for {self.KIND}: use one of'
                f" {', '.join(('auto', *self.ENGINES))}"
            )
        return self
