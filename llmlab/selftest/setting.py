"""What a check is given, and what checks share: models of a size that fits the device, a clock, rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from llmlab.models.device import choose_precision, free_bytes

Device = Literal["cuda", "mps", "cpu"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VOCABULARY = 512  # of the small models
GIGABYTE = 1e9


@dataclass(frozen=True)
class Setting:
    """How a check is done.

    Attributes:
        device: "cuda", "mps" or "cpu".
        quick: whether the smallest sizes are taken.
        folder: for files of this selftest, removed when it ends.
    """

    device: Device
    quick: bool
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """Whether the device is no processor."""
        return self.device != "cpu"

    @property
    def precision(self) -> str:
        """Number format that runs compute in by default: "fp32" or "bf16"."""
        return choose_precision("auto", self.device)

    def precisions(self) -> tuple[str, ...]:
        """Returns the number formats that runs can compute in on this device."""
        if self.device == "cuda":
            return ("fp32", "bf16", "fp16") if torch.cuda.is_bf16_supported() else ("fp32", "fp16")
        return ("fp32", "bf16") if self.device == "cpu" else ("fp32", "fp16")

    def large(self) -> bool:
        """Returns whether the device has room for models of hundreds of millions of weights."""
        return self.on_gpu and not self.quick and free_bytes(torch.device(self.device)) > 12 * GIGABYTE


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, and of what it reads at once."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    rows: int
    length: int

    def options(self) -> dict[str, int]:
        """Returns the options of a model config."""
        return {
            "vocab_size": self.vocabulary,
            "d_model": self.width,
            "n_layers": self.layers,
            "n_heads": self.heads,
            "n_kv_heads": self.kv_heads,
            "d_ff": self.feed_forward,
            "max_seq_len": self.length,
        }

    def peer(self, *, deviation: float = 0.02) -> Qwen2ForCausalLM:
        """Returns transformers' Qwen2 of this shape with weights that are the same every time, in fp32."""
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=self.vocabulary,
                hidden_size=self.width,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads,
                intermediate_size=self.feed_forward,
                max_position_embeddings=max(self.length, 64),
                tie_word_embeddings=True,
                initializer_range=deviation,
                use_cache=False,
            )
        )
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero at the start, which would hide a missing bias
                torch.nn.init.normal_(parameter, std=0.3)
        return model


SMALL = Shape(128, 2, 4, 2, 256, VOCABULARY, 3, 40)  # of the checks of exactness


def small_peer() -> Qwen2ForCausalLM:
    """Returns the small Qwen2 that is compared with; its weights are large enough that nothing is near 0."""
    return SMALL.peer(deviation=0.08)


def ids(setting: Setting, rows: int, length: int, vocabulary: int = VOCABULARY) -> Tensor:
    """Returns random token ids, (rows, length), the same every time."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (rows, length), generator=generator).to(setting.device)


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Returns the context in which a run of a precision computes."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device, DTYPES[precision])


def synchronise(device: str) -> None:
    """Waits until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def timed(device: str, work: Callable[[], object], rounds: int) -> float:
    """Returns the least seconds of several rounds of work, since what disturbs only adds; a first round,
    which warms up, does not count.
    """
    work()
    times = []
    for _ in range(rounds):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return min(times)
