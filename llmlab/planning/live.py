"""What a run could take of this machine. No torch."""

from __future__ import annotations

from llmlab.config.training import TrainingConfig
from llmlab.hardware import gpu_memory, has_nvidia, host_memory
from llmlab.planning.processes import local_processes_of


def device_memory(config: TrainingConfig) -> int:
    """Returns the bytes that each process of a run could take on its device.

    Of GPUs the fullest counts, since all processes take the same; without them the processes share the
    machine's memory.
    """
    local = local_processes_of(config)
    return (gpu_memory(local) if on_gpu(config) else 0) or host_memory() // local


def on_gpu(config: TrainingConfig) -> bool:
    """Returns whether a run trains on an NVIDIA device here."""
    return has_nvidia() and config.device in ("auto", "cuda")
