"""What torch really holds during an update, counted by its profiler: what a device would have to hold,
but for its kernels.
"""

from __future__ import annotations

import gc
import itertools
from contextlib import suppress
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from llmlab.training.engine import progress
from llmlab.training.engine.run import run


def tensors() -> dict[int, int]:
    """Returns place and bytes of every tensor's storage in this process."""
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            with suppress(RuntimeError):  # one that only stands for a tensor, left by a compiled model
                found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return found


class Count(TrainerCallback):
    """Bytes at the peak of the second update: what stood before it, and what came.

    Args:
        before: tensors that were there before the run, and do not count.
    """

    def __init__(self, before: dict[int, int]) -> None:
        self.before, self.peak = before, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 1:
            return
        gc.collect()
        self.standing = sum(size for place, size in tensors().items() if place not in self.before)
        self.watch = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.watch.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 2:
            return
        self.watch.__exit__(None, None, None)
        events = [
            event for event in self.watch.profiler.kineto_results.events() if event.name() == "[memory]"
        ]
        sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
        self.peak = self.standing + max(itertools.accumulate(sizes))


def allocated(config: Any) -> float:
    """Returns those bytes of a run, which has to have two steps or more."""
    gc.collect()
    there, counts = tensors(), []
    before = progress.samples
    progress.samples = lambda *_: counts.append(Count(there)) or counts
    try:
        run(config)
    finally:
        progress.samples = before
    return counts[0].peak
