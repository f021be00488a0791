"""What the answers of a form amount to, in two short lines, while they are given. No torch."""

from __future__ import annotations

import functools
import os
import subprocess
import time

import psutil

from llmlab.config import LabBaseConfig, ModelConfig, PretrainConfig, load_config
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.planning.memory import has_nvidia, predicted, training_memory
from llmlab.planning.parameters import count_parameters, kv_cache_bytes_per_token
from llmlab.planning.units import size

WIDTH = 12  # of the bar
FRESH = 30  # seconds for which a device's free memory is not asked for again


def live_figures(config: LabBaseConfig) -> list[str]:
    """Returns lines of figures of a config; none where nothing is known without loading."""
    if isinstance(config, ModelConfig):
        count = count_parameters(config)
        memory = training_memory(
            config, batch_size=1, optimizer="adamw", precision="fp32", gradient_checkpointing=False
        )
        cache = size(1000 * kv_cache_bytes_per_token(config))
        return [
            f"{short(count.total)} parameters, {short(count.non_embedding)} beside embeddings; "
            f"bf16 {size(count.total * 2)}; KV {cache} a 1,000 tokens",
            f"training {size(memory.total)} (adamw, fp32, 1 row) {bar(memory.total)}",
        ]
    if not isinstance(config, TrainingConfig):
        return []
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rows = config.micro_batch_size * config.accumulation_steps * world
    lines = [f"{rows:,} rows an update, {rows * config.max_steps:,} in all"]
    if isinstance(config, PretrainConfig) and (shape := _shape(config)):
        lines = [f"{lines[0]}: {rows * config.max_steps * shape.max_seq_len:,} tokens"]
    if memory := predicted(config):
        lines.append(f"memory about {size(memory.total)} {bar(memory.total)}")
    return lines


def bar(needed: float) -> str:
    """Returns a bar of what is needed of the memory that is free here, and whether it fits."""
    free = available_memory()
    share = needed / free
    filled = min(WIDTH, round(share * WIDTH))
    verdict = "fits" if share < 0.8 else "tight" if share < 1 else "does not fit"
    return f"[{'#' * filled}{'.' * (WIDTH - filled)}] {verdict} ({size(free)} free)"


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


def short(count: float) -> str:
    """Returns a count as a person says it: 1.3M."""
    for unit in ("", "k", "M"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}B"


@functools.lru_cache(maxsize=4)
def _read(path: str) -> LabBaseConfig | None:
    try:
        return load_config(path)
    except LabError:
        return None


def _shape(config: PretrainConfig) -> ModelConfig | None:
    found = config.model if isinstance(config.model, ModelConfig) else _read(str(config.model))
    return found if isinstance(found, ModelConfig) else None
