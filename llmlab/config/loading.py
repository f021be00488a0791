"""How a model is loaded to be used: where it computes, in which number format, quantised or not."""

from __future__ import annotations

from typing import Literal

from llmlab.config.base import LabBaseConfig
from llmlab.config.options import option


class LoadOptions(LabBaseConfig):
    """What `chat`, `generate`, `evaluate` and `serve` share: `--load-in`, `--device`, `--dtype`."""

    load_in: Literal["none", "8bit", "4bit"] = option(
        "none",
        "Quantised loading",
        "Quantise the weights with bitsandbytes as they are loaded.",
        choices={
            "none": "as they were saved",
            "8bit": "half the memory of 16 bit",
            "4bit": "a quarter (nf4, double quantisation)",
        },
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = option(
        "auto",
        "Device",
        "Where the model computes.",
        choices={
            "auto": "the best that is found",
            "cuda": "an NVIDIA GPU",
            "mps": "an Apple GPU",
            "cpu": "the processor",
        },
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Number format",
        "Number format of the weights; of quantised ones, of the matrix products.",
        choices={
            "auto": "as the weights were saved; of quantised ones bf16 on a GPU that has it, else fp32",
            "fp32": "exact; twice the memory of 16 bit",
            "bf16": "the usual choice on current GPUs",
            "fp16": "for older GPUs",
        },
    )
