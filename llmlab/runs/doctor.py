"""What this machine has: `llmlab doctor`. Versions are read without importing;
only the device line loads torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import psutil
from rich.table import Table
from rich.text import Text

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
    "flash-attn": "attention_backend flash",
    "wandb": "report_to wandb",
    "vllm": "fast rollouts",
}


def doctor_table() -> Table:
    """Returns the findings."""
    table = Table(title="doctor", show_header=False, title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("python", platform.python_version())
    for name in NEEDED:
        table.add_row(name, _version(name) or Text("missing: reinstall llmlab", style="red"))
    for name, purpose in OPTIONAL.items():
        table.add_row(name, _version(name) or Text(f"not installed (for {purpose})", style="dim"))
    table.add_row("devices", _devices())
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    table.add_row(
        "memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free, {os.cpu_count()} cores"
    )
    table.add_row("disk", f"{disk.free / 1e9:.1f} GB free here")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    table.add_row("hub", "offline by HF_HUB_OFFLINE" if offline else "reached when a hub id is asked for")
    return table


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
