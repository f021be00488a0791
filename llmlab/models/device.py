"""Where a model computes, in which number format, and with which attention kernel."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
)

from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError


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

    On MPS "auto" is eager: sdpa gives NaN there for rows with padding.

    Raises:
        LabError: when flash attention is asked for and its package is missing, or flex attention on a
            processor.
    """
    kernel = {"flex": "flex_attention", "flash": "flash_attention_2"}.get(
        config.attention_backend, config.attention_backend
    )
    if kernel == "auto":
        return "eager" if device == "mps" else None
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
