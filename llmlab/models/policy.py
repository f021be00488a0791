"""Loading what is trained: a policy as its config wants it, quantised and adapted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
)

from llmlab.config import DualHeadConfig
from llmlab.config.adapters import AdapterOptions
from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models import LabDualHeadForCausalLM
from llmlab.models.adapters import add_adapter
from llmlab.models.device import attention_kernel
from llmlab.models.load import load_model
from llmlab.models.resolve import ModelRef, refuse_architecture
from llmlab.models.typed import LanguageModel


def loading_kwargs(config: AdapterOptions | DualHeadConfig, device: str, precision: str) -> dict[str, Any]:
    """Returns how a policy, and the reference it is held to, are loaded: kernels, number format,
    quantisation.
    """
    kwargs: dict[str, Any] = {"attn_implementation": attention_kernel(config, device), "dtype": torch.float32}
    if config.frozen_base and config.quantised != "none":
        from transformers import BitsAndBytesConfig

        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=config.quantised == "8bit",
            load_in_4bit=config.quantised == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        )
        local = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
        kwargs["device_map"] = {"": local}
    elif config.frozen_base and precision == "bf16":
        kwargs["dtype"] = torch.bfloat16  # frozen weights need no fp32 copy
    return kwargs


def refuse_encoder_decoders(policy: ModelRef, kind: str) -> None:
    """Refuses policies in two parts for methods that train decoders.

    Raises:
        LabError: with what to do.
    """
    where = Path(policy.where)
    try:
        if policy.kind == "adapter":
            where = Path(str(read_object(where / "adapter_config.json")["base_model_name_or_path"]))
        model_config = read_object(where / "config.json")
    except (OSError, ValueError, KeyError):
        return
    refuse_architecture(model_config, policy.name, kind)


def load_policy(
    policy: ModelRef, config: AdapterOptions, device: str, precision: str
) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """Returns the model to train (weights in fp32,
    or frozen and quantised under an adapter) and its tokenizer.
    """
    if config.kind != "sft":
        refuse_encoder_decoders(policy, config.kind)
    model, tokenizer = load_model(policy, **loading_kwargs(config, device, precision))
    if isinstance(model, LabDualHeadForCausalLM):
        raise LabError(
            f"is a dual-head model with a frozen backbone; `{config.kind}` trains whole models",
            where=policy.name,
            remedy=f"train its backbone, {model.config.backbone}",
        )
    return (
        add_adapter(model, config, task="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"),
        tokenizer,
    )
