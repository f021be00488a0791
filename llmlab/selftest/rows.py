"""What a check found, as records, and the table of checks. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

# "slow": right, and worth a look; only "failed" makes the selftest fail
Status = Literal["passed", "slow", "failed", "not on this device"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was checked: a check, or a part of it.
        status: whether it is right.
        found: what was compared, and the figures, in one sentence.
        remedy: what to do; "" where there is nothing to do.
        figures: the same for programs.
        seconds: that it took.
        check: that it belongs to.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    check: str = ""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Row:
        """Returns the row of an object as JSON has it.

        Raises:
            TypeError: when it has other fields.
        """
        return cls(**values)


@dataclass(frozen=True)
class Check:
    """A check of the selftest.

    Attributes:
        target: the function that does it, as `module:function`; it is called with a `Setting` and a part, and
            yields rows.
        title: what it says of the lab.
        parts: each is done in a process of its own where processes are cheap.
        limit: seconds after which a part counts as hanging.
    """

    target: str
    title: str
    parts: tuple[str, ...] = ("",)
    limit: int = 300


CHECKS = {
    "parity": Check(
        "llmlab.selftest.parity:check",
        "logits, losses and gradients against fp64, beside transformers' Qwen2",
    ),
    "lora": Check("llmlab.selftest.lora:check", "a LoRA adapter and its gradients, and the same merged"),
    "4bit": Check("llmlab.selftest.four_bit:check", "products with 4-bit weights, as QLoRA loads them"),
    "resume": Check(
        "llmlab.selftest.resume:check", "a run that is stopped and resumed ends in the same bits"
    ),
    "memory": Check(
        "llmlab.selftest.memory:check",
        "memory as it is planned, beside the peak of real runs, whose speed is kept for plans",
        ("base", "base, checkpointing", "SFT", "LoRA", "QLoRA", "DPO"),
    ),
    "speed": Check("llmlab.selftest.speed:check", "tokens a second of training, beside transformers' Qwen2"),
    "attention": Check(
        "llmlab.selftest.attention:check",
        "attention kernels: which work, are right, and are fast",
        limit=600,  # flex is compiled
    ),
    "decoding": Check("llmlab.selftest.decoding:check", "answers, beside transformers' `generate`"),
    "oom": Check("llmlab.selftest.full:check", "a batch that is too large for the device's memory"),
}


@dataclass(frozen=True)
class Machine:
    """Where the selftest ran.

    Attributes:
        device: "cuda", "mps" or "cpu".
        name: of the device.
        precision: that runs compute in by default.
        torch: version.
        transformers: version.
        driver: version of the GPU's; "" for none.
        cuda: version that torch was built for; "" for none.
        memory: bytes that are free on the device.
        threads: that torch computes with on the processor.
        load: processes that wanted the processor before the selftest began, over the last minute.
        llmlab: version.
    """

    device: str
    name: str
    precision: str
    torch: str
    transformers: str
    driver: str
    cuda: str
    memory: int
    threads: int
    load: float
    llmlab: str
