"""What a user sees and presses while a run trains."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from llmlab.runs.disk import FullDisk
from llmlab.runs.folder import RunFolder
from llmlab.training.callbacks.keys import KEYS, Keys
from llmlab.training.callbacks.samples import Samples, opening
from llmlab.training.callbacks.stop import StopOnSignal
from llmlab.training.dashboard import Dashboard
from llmlab.training.engine.context import RunContext
from llmlab.training.engine.distributed import is_main, processes
from llmlab.training.engine.job import Job
from llmlab.training.registry import STAGES

READING = ("pretrain", "sft")  # whose tokens all go forward and backward once


class Progress:
    """Dashboard, keys, samples and TensorBoard of a run.

    Args:
        dashboard: that draws.
        keys: that are read, or None without a terminal.
        others: callbacks that come before them.
        tensorboard: folder of the run where TensorBoard's files are written, or None.
    """

    def __init__(
        self,
        dashboard: Dashboard,
        keys: Keys | None,
        others: list[TrainerCallback],
        tensorboard: RunFolder | None,
    ):
        self.dashboard, self.keys, self.others, self.tensorboard = dashboard, keys, others, tensorboard
        self._reading: AbstractContextManager[Any] = keys or nullcontext()

    @classmethod
    def of(cls, context: RunContext, job: Job, folder: RunFolder, stop: StopOnSignal) -> Progress:
        """Returns what fits the run: keys where a terminal is, samples where a model can answer."""
        config, console = context.config, context.console
        reads_keys = is_main() and processes() == 1 and Keys.there()
        measures = console.is_terminal and config.kind in READING
        dashboard = Dashboard(
            f"{STAGES[config.kind].title} · {folder.path}",
            console,
            hint=KEYS if reads_keys else "",
            flops_per_token=flops_per_token(job.model) if measures else 0.0,
            peak=peak_flops(context.device, context.precision) if measures else 0.0,
        )
        keys = Keys(stop, dashboard, validates=bool(job.data.eval)) if reads_keys else None
        tensorboard = folder if "tensorboard" in config.report_to else None
        return cls(dashboard, keys, samples(context, job, folder, dashboard), tensorboard)

    def callbacks(self, disk: FullDisk) -> list[TrainerCallback]:
        """Returns the callbacks in their order."""
        writers: list[TrainerCallback] = []
        if self.tensorboard:
            from llmlab.training.callbacks.tensorboard import TensorBoard

            writers.append(TensorBoard(self.tensorboard.path, disk))
        return [*writers, *self.others, *([self.keys] if self.keys else []), self.dashboard]

    def close(self) -> None:
        """Gives the screen back; may be called more than once."""
        self.dashboard.close()

    def __enter__(self) -> Progress:
        self._reading.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._reading.__exit__(*error)


def samples(context: RunContext, job: Job, folder: RunFolder, dashboard: Dashboard) -> list[TrainerCallback]:
    """Returns what takes samples; nothing where the model says nothing, or no process has all of it."""
    length = context.config.sample_tokens
    if not length or processes() > 1 or not job.model.can_generate():
        return []
    prompt = opening(job.data, job.tokenizer)
    return [Samples(folder, job.model, job.tokenizer, prompt, length, dashboard.sample)] if prompt else []


def flops_per_token(model: PreTrainedModel) -> float:
    """Returns the FLOPs of training on a token: 6 for each weight of a matrix that learns, 4 for each that
    does not.
    """
    lookups = {id(p) for p in model.get_input_embeddings().parameters()}
    head = model.get_output_embeddings()
    if head is not None:  # tied, it is a matrix product as well
        lookups -= {id(p) for p in head.parameters()}
    return sum(
        (6 if p.requires_grad else 4) * p.numel()
        for p in model.parameters()
        if p.ndim > 1 and id(p) not in lookups
    )


def peak_flops(device: str, precision: str) -> float:
    """Returns the FLOPs a second that the device reaches in a matrix product: the best of a few,
    in a fraction of a second.
    """
    size, dtype = (4096, torch.bfloat16) if device == "cuda" else (768, torch.float32)
    if precision == "fp32":
        dtype = torch.float32
    one = torch.ones(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        one @ one
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best
