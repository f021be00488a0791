"""How a model is exported: the format, the number format of its weights, and where it goes."""

from __future__ import annotations

from typing import Literal

from llmlab.config.base import LabBaseConfig
from llmlab.config.options import option

FLOATS = ("F32", "F16", "BF16")
BLOCKS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")  # the package gguf rounds to them
BY_LLAMA_CPP = ("Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K")  # only llama.cpp does
TYPES = {
    "auto": "16 bits: bf16 where the model was saved so, else fp16",
    "F32": "32 bits: exact, twice the size",
    "F16": "fp16",
    "BF16": "bf16",
    "Q8_0": "8.5 bits a weight: hardly any loss",
    "Q5_1": "6 bits a weight",
    "Q5_0": "5.5 bits a weight",
    "Q4_1": "5 bits a weight",
    "Q4_0": "4.5 bits a weight: the smallest that needs no llama.cpp here",
    "Q6_K": "6.6 bits a weight, by llama.cpp",
    "Q5_K_M": "5.7 bits a weight, by llama.cpp",
    "Q5_K_S": "5.5 bits a weight, by llama.cpp",
    "Q4_K_M": "4.8 bits a weight, by llama.cpp: the usual choice",
    "Q4_K_S": "4.6 bits a weight, by llama.cpp",
    "Q3_K_M": "3.9 bits a weight, by llama.cpp",
    "Q2_K": "3.4 bits a weight, by llama.cpp",
}
QuantizationType = Literal[
    "auto",
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q5_1",
    "Q5_0",
    "Q4_1",
    "Q4_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_K_M",
    "Q4_K_S",
    "Q3_K_M",
    "Q2_K",
]


class ExportOptions(LabBaseConfig):
    """Options of `llmlab export`."""

    to: Literal["hf", "gguf", "ollama"] = option(
        "hf",
        "Format",
        "What other programs read.",
        choices={
            "hf": "a folder for transformers, vLLM and TGI; adapters are merged",
            "gguf": "one file for llama.cpp, LM Studio, Jan and others",
            "ollama": "a GGUF file with a Modelfile for `ollama create`",
        },
    )
    output: str | None = option(
        None, "Output folder", "Where it goes; left out, a folder beside the model, named after the format."
    )
    quantize: QuantizationType = option(
        "auto",
        "Quantisation",
        "Number format of the weights in a GGUF file. Types with K need llama.cpp's llama-quantize.",
        choices=TYPES,
        applies_when={"to": ["gguf", "ollama"]},
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "Number format",
        "Of the weights in a Hugging Face folder; auto keeps what the model was saved in.",
        applies_when={"to": ["hf"]},
        advanced=True,
    )
    alignment: float | None = option(
        None,
        "Fixed alignment",
        "Of a dual head: export a plain model at this alignment, where that is exact (0 is the backbone).",
        advanced=True,
        ge=0,
        le=100,
    )
