"""The memory that a run's process holds, keeps and gives back."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path


def tune_malloc(*, sparing: bool) -> None:
    """Lets the C library keep freed memory instead of giving every large tensor back to the system.

    On the CPU each step would otherwise fault in its activations page by page; `benchmarks/speed.py` prints
    the effect. What is kept is not all used again: an aligned block does not fit where one of its own size
    was, so the heap grows by what every layer frees. Where memory comes before speed (`sparing`), large
    blocks are given back.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 20 if sparing else 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 27 if sparing else (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        return  # another C library: slower, not wrong


def free_memory() -> None:
    """Gives memory that nobody uses back to the device and to the system."""
    import torch

    gc.collect()
    if "pyarrow" in sys.modules:  # which has an allocator of its own
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return


def begin_peak(device: str) -> None:
    """Lets the peak be counted from here on, where the system can: a process may train several runs."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS (proc(5))


def peak_memory(device: str) -> tuple[int, str]:
    """Returns the most bytes in use since `begin_peak`, and of what: "GPU" (what torch had allocated) or
    "process" (what was resident); 0 where the system does not say.
    """
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated(), "GPU"
    if sys.platform == "win32":
        return 0, "process"
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak, "process"
