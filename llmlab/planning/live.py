"""The memory that is free here now. No torch."""

from __future__ import annotations

import functools
import subprocess
import time

import psutil

from llmlab.planning.memory import has_nvidia

FRESH = 30  # seconds for which a device's free memory is not asked for again


def available_memory() -> int:
    """Returns the bytes that a run could take here: of the NVIDIA device where there is one,
    else of the machine.
    """
    return gpu_memory() or psutil.virtual_memory().available


def gpu_memory() -> int:
    """Returns the free bytes of the NVIDIA device; 0 where there is none, or it does not say."""
    return _nvidia_free(int(time.monotonic() / FRESH)) if has_nvidia() else 0


@functools.lru_cache(maxsize=1)
def _nvidia_free(moment: int) -> int:
    """Returns the free bytes of the first device as its own tool says them, 0 where it does not;
    asked once a moment.
    """
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        return (
            int(
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.split()[
                    0
                ]
            )
            << 20
        )
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return 0
