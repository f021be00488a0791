"""What torch really holds during an update, counted by its profiler: what a device would have to hold, but for its kernels."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from llmlab.train import engine


class Count(TrainerCallback):
    """Bytes at the peak of the second update: what stood before it, and what came."""

    def __init__(self) -> None:
        self.peak = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 1:
            return
        gc.collect()
        held = [thing.untyped_storage() for thing in gc.get_objects() if torch.is_tensor(thing) and thing.device.type == "cpu"]
        self.standing = sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())
        self.watch = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.watch.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 2:
            return
        self.watch.__exit__(None, None, None)
        events = [event for event in self.watch.profiler.kineto_results.events() if event.name() == "[memory]"]
        sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
        self.peak = self.standing + max(itertools.accumulate(sizes))


def allocated(config: Any) -> float:
    """Returns those bytes of a run, which has to have two steps or more; nothing else may be in memory beside it."""
    counts: list[Count] = []
    before = engine.samples
    engine.samples = lambda *_: counts.append(Count()) or counts
    try:
        engine.run(config, console=Console(quiet=True))
    finally:
        engine.samples = before
    return counts[0].peak
