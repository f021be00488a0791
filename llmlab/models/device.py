"""Where a model computes, in which number format, and with which attention kernel."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from llmlab.config import ModelConfig, PretrainConfig, SFTConfig, load_config
from llmlab.config.training import TrainingConfig
from llmlab.device_store import System, kept_attention
from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.hardware import device_name, driver_version
from llmlab.models.headers import checkpoint_shape
from llmlab.runs.folder import find_model

# how the attention kernel of a run was chosen: by the config, by transformers, by the selftest of this device
AttentionBy = Literal["config", "auto", "selftest"]


def choose_device(wanted: str) -> str:
    """Returns "cuda", "mps" or "cpu".

    Raises:
        LabError: when the wanted device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, there in available.items() if there)
    if not available[wanted]:
        raise LabError(f"`device` {wanted!r} is not on this machine", remedy='use "auto" or "cpu"')
    return wanted


def device_count() -> int:
    """Returns how many NVIDIA GPUs this process sees."""
    return torch.cuda.device_count()


def hardware_name(device: str) -> str:
    """Returns the name of what computes: a GPU's, or a processor's with the threads that are used."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    if device == "mps":
        return "Apple GPU"
    lines = Path("/proc/cpuinfo")
    text = lines.read_text(errors="replace") if lines.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def choose_precision(wanted: str, device: str) -> str:
    """Returns "fp32", "bf16" or "fp16".

    Raises:
        LabError: when the device cannot compute in the wanted one.
    """
    if wanted == "auto":
        return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "fp16" and device == "cpu":
        raise LabError('`precision` "fp16" needs a GPU', remedy='use "fp32" or "bf16"')
    return wanted


def free_bytes(device: torch.device) -> int:
    """Returns the memory that a model on this device could take now."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + reserved)
    return int(psutil.virtual_memory().available)


def attention_kernel(config: TrainingConfig, device: str) -> str | None:
    """Returns the name that transformers has for the attention backend; None lets it take sdpa where the
    model supports it, else eager.

    "auto" is the kernel that `llmlab selftest` found the fastest on this device, where a run can use it;
    else on MPS eager: sdpa gives NaN there for rows with padding.

    Raises:
        LabError: when flash attention is asked for and its package is missing, or flex attention on a
            processor.
    """
    kernel = {"flex": "flex_attention", "flash": "flash_attention_2"}.get(
        config.attention_backend, config.attention_backend
    )
    if kernel == "auto":
        return fastest_kernel(config, device) or default_kernel(device)
    if kernel == "flash_attention_2":
        from transformers.utils.import_utils import is_flash_attn_2_available

        if not is_flash_attn_2_available():
            raise LabError(
                '`attention_backend` "flash" needs the flash-attn package and a GPU', remedy='use "sdpa"'
            )
    if kernel == "flex_attention" and device == "cpu":
        raise LabError(
            '`attention_backend` "flex" needs a GPU: PyTorch has no backward pass of it for processors',
            remedy='use "sdpa"',
        )
    return kernel


def default_kernel(device: str) -> str | None:
    """Returns what "auto" is where nothing was measured; None for transformers' own choice."""
    return "eager" if device == "mps" else None


def system_of(device: str) -> System:
    """Returns what a measurement on a device holds for."""
    return System(device_name(device), torch.__version__, driver_version() if device == "cuda" else "")


def fastest_kernel(config: TrainingConfig, device: str) -> str | None:
    """Returns the attention kernel that the selftest found the fastest on this device, where a run can
    compute with it as it was measured: on packed rows of one length, without dropout in attention; None else,
    and where it is the usual one.
    """
    kernel = kept_attention(system_of(device))
    if kernel == (default_kernel(device) or "sdpa"):
        return None  # transformers' own choice: sdpa where the architecture has it
    if kernel is None or not isinstance(config, (PretrainConfig, SFTConfig)):
        return None
    if config.tensor_parallel > 1 or (isinstance(config, SFTConfig) and not config.packing):
        return None
    if kernel == "flash_attention_2" and choose_precision(config.precision, device) == "fp32":
        return None  # its kernels have 16 bit only
    start = config.init_from if isinstance(config, PretrainConfig) else config.policy_checkpoint
    try:
        return kernel if _takes(_architecture(config, start), kernel) else None
    except (OSError, ValueError, KeyError, LabError):  # not known before it is loaded
        return None


def _architecture(config: PretrainConfig | SFTConfig, start: str | None) -> dict[str, Any]:
    """Returns the options of a model as its `config.json` has them; of an adapter its base's kind alone."""
    if start:
        shape = checkpoint_shape(start)
        folder = Path(find_model(start))
        there = folder.is_dir() and (folder / "config.json").is_file()
        known = read_object(folder / "config.json") if there else {}
        return {"model_type": shape.kind if shape else "", **known}
    model = config.model if isinstance(config, PretrainConfig) else None
    shape_config = load_config(model) if isinstance(model, (str, Path)) else model
    if not isinstance(shape_config, ModelConfig):
        return {}
    return {**shape_config.model_dump(), "model_type": "llmlab"}


def _takes(about: dict[str, Any], kernel: str) -> bool:
    """Returns whether an architecture computes the same with a kernel."""
    drops = any(about.get(name) for name in ("dropout", "attention_dropout", "attn_pdrop"))
    if about.get("positional_encoding") == "alibi" or (drops and kernel == "flex_attention"):
        return False
    kind = about.get("model_type", "")
    if (
        kind not in CONFIG_MAPPING
        or (config_class := CONFIG_MAPPING[kind]) not in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        return False
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    return kernel not in KERNELS or bool(getattr(model_class, KERNELS[kernel][0]))


def attention_chosen_by(config: TrainingConfig, device: str, kernel: str) -> AttentionBy:
    """Returns how the kernel that a model computes with was chosen."""
    if config.attention_backend != "auto":
        return "config"
    return "selftest" if kept_attention(system_of(device)) == kernel else "auto"


# transformers' name of a kernel -> the class attribute that says whether a model supports it, and our name of
# the kernel
KERNELS = {
    "sdpa": ("_supports_sdpa", "sdpa"),
    "flex_attention": ("_supports_flex_attn", "flex"),
    "flash_attention_2": ("_supports_flash_attn", "flash"),
}


def refuse_kernel(model_config: PreTrainedConfig, classes: Any, kernel: str | None, where: str) -> None:
    """Refuses an attention backend that the architecture does not support.

    Args:
        about: the model's config.
        classes: transformers' mapping from configs to the classes of the task.
        kernel: transformers' name of the backend; None when it may choose.
        where: the model.

    Raises:
        LabError: with the backends that it supports.
    """
    if kernel not in KERNELS or type(model_config) not in classes:
        return
    cls = classes[type(model_config)]
    if not getattr(cls, KERNELS[kernel][0]):
        others = [name for flag, name in KERNELS.values() if getattr(cls, flag)]
        raise LabError(
            f'`attention_backend` "{KERNELS[kernel][1]}" is not supported by'
            f" {model_config.model_type} models",
            where=where,
            remedy=f"use {' or '.join(['auto', *others, 'eager'])}",
        )


def attention_in_use(model: PreTrainedModel) -> str:
    """Returns transformers' name of the attention kernel that a model computes with,
    of a dual head its backbone's.
    """
    return str(getattr(model, "backbone", model).config._attn_implementation)
