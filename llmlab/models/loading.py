"""Loading what is used, not trained: as a person's `--load-in`, `--device` and `--dtype` say."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llmlab.config.loading import LoadOptions
from llmlab.errors import LabError
from llmlab.models.device import choose_device
from llmlab.models.load import load_model
from llmlab.models.typed import LanguageModel, moved

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_for_use(name: str, options: LoadOptions) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """Returns model, in evaluation mode, and tokenizer of a run, a folder, a GGUF file or a hub id.

    Adapters are attached and computed in their own precision; of a dual head, the backbone is quantised.

    Raises:
        LabError: when there is no such model, or it cannot be loaded as the options say.
    """
    device = choose_device(options.device)
    model, tokenizer = load_model(name, **use_kwargs(options, device))
    if options.load_in == "none":
        model = moved(model, device)
    return model.eval(), tokenizer


def use_kwargs(options: LoadOptions, device: str) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` that options stand for; none by default.

    Raises:
        LabError: when the device cannot compute in that format, or bitsandbytes is missing.
    """
    if options.dtype == "fp16" and device == "cpu":
        raise LabError('`dtype` "fp16" needs a GPU', remedy='use "fp32" or "bf16"')
    if options.load_in == "none":
        return {} if options.dtype == "auto" else {"dtype": DTYPES[options.dtype]}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise LabError(
            f'`load_in` "{options.load_in}" needs the bitsandbytes package', remedy="pip install bitsandbytes"
        )
    from transformers import BitsAndBytesConfig

    half = device == "cuda" and torch.cuda.is_bf16_supported()
    dtype = DTYPES["bf16" if half else "fp32"] if options.dtype == "auto" else DTYPES[options.dtype]
    quantisation = BitsAndBytesConfig(
        load_in_8bit=options.load_in == "8bit",
        load_in_4bit=options.load_in == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": quantisation, "dtype": dtype, "device_map": {"": device}}
