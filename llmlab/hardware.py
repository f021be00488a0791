"""The memory and the devices of this machine, as they are now: no torch, and quick to import."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

FRESH = 30  # seconds for which a device's free memory is not asked for again


def available_memory() -> int:
    """Returns the bytes that a run on one device could take here: of the NVIDIA device where there is one,
    else of the machine.
    """
    return gpu_memory() or host_memory()


def host_memory() -> int:
    """Returns the free bytes of the machine's own memory."""
    return psutil.virtual_memory().available


def gpu_memory(count: int = 1) -> int:
    """Returns the free bytes of the fullest of the first `count` NVIDIA devices; 0 where there is none, or it
    does not say.
    """
    free = _nvidia_free(int(time.monotonic() / FRESH)) if has_nvidia() else ()
    return min(free[:count], default=0)


def has_nvidia() -> bool:
    """Returns whether an NVIDIA device is there, without loading torch."""
    return Path("/proc/driver/nvidia/version").exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") != ""


@functools.cache
def gpu_name() -> str:
    """Returns the name of the first NVIDIA device; "" where there is none, or it does not say."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout
        return next(iter(said.strip().splitlines()), "").strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def driver_version() -> str:
    """Returns the version of the NVIDIA driver; "" where there is none, or it does not say."""
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(errors="replace")
        if found := re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", text):
            return found[1]
    return ""


@functools.cache
def processor_name() -> str:
    """Returns the name of the processor, and how many threads compute on it."""
    lines = Path("/proc/cpuinfo")
    text = lines.read_text(errors="replace") if lines.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    set_threads = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(set_threads) if set_threads.isdigit() else psutil.cpu_count(logical=False) or os.cpu_count()
    return f"{model[1].strip() if model else 'processor'}, {threads} thread{'' if threads == 1 else 's'}"


def device_name(device: str) -> str:
    """Returns the name under which measurements of a device are kept.

    Args:
        device: "cuda", "mps" or "cpu".
    """
    if device == "cuda":
        return gpu_name() or "NVIDIA GPU"
    return f"{processor_name()}{', Apple GPU' if device == 'mps' else ''}"


@functools.lru_cache(maxsize=1)
def _nvidia_free(moment: int) -> tuple[int, ...]:
    """Returns the free bytes of the devices that a process sees, as their own tool says them; nothing where
    it does not. Asked once a moment.
    """
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout
        return visible_devices(said, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def visible_devices(said: str, visible: str | None) -> tuple[int, ...]:
    """Returns the free bytes of the devices that a process sees, in its own order.

    Args:
        said: lines of `index, uuid, MiB` as nvidia-smi prints them.
        visible: CUDA_VISIBLE_DEVICES; None where it is not set.

    Raises:
        ValueError: when a line is not of this form.
    """
    rows = [[part.strip() for part in line.split(",")] for line in said.strip().splitlines()]
    devices = [(index, uuid, int(mib) << 20) for index, uuid, mib in rows]
    if visible is None:
        return tuple(free for _, _, free in devices)
    wanted = [name.strip() for name in visible.split(",") if name.strip()]
    return tuple(
        free
        for name in wanted
        for index, uuid, free in devices
        if name == index or (not name.isdigit() and uuid.startswith(name))
    )
