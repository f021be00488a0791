"""What a user sees and presses while a run trains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import cast

import torch
from transformers import PreTrainedModel, TrainerCallback

from llmlab.launching.rank_files import RankFiles
from llmlab.models.typed import LanguageModel
from llmlab.runs.disk import FullDisk
from llmlab.runs.folder import RunFolder
from llmlab.training.callbacks.engine_in_effect import SayEngine
from llmlab.training.callbacks.keys import KEYS, Keys
from llmlab.training.callbacks.progress import ReportProgress
from llmlab.training.callbacks.rank_step import NoteStep
from llmlab.training.callbacks.samples import Samples, opening
from llmlab.training.callbacks.speed import KeepSpeed
from llmlab.training.callbacks.stop import StopOnSignal
from llmlab.training.callbacks.tracker_facts import TrackerFacts
from llmlab.training.engine.context import RunContext
from llmlab.training.engine.distributed import is_main, processes
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import TrainingStart

READING = ("pretrain", "sft")  # whose tokens all go forward and backward once


def keys_of(context: RunContext, job: Job, stop: StopOnSignal) -> Keys | None:
    """Returns what reads keys; None where no terminal is, or where several processes work together."""
    if not is_main() or processes() > 1 or not Keys.there():
        return None
    return Keys(stop, context.reporter, validates=bool(job.data.eval))


def progress_callbacks(
    context: RunContext,
    job: Job,
    folder: RunFolder,
    keys: Keys | None,
    disk: FullDisk,
    facts: Mapping[str, float | str],
) -> list[TrainerCallback]:
    """Returns what a person sees of a run, in its order: trackers, samples, keys, the reporter,
    what keeps its speed.

    Args:
        context: of the run.
        job: its model and data.
        folder: of the run.
        keys: what reads them, None for nothing.
        disk: waits for room on a full one.
        facts: of the run, for TensorBoard, trackio and wandb.
    """
    config = context.config
    writers: list[TrainerCallback] = []
    if "tensorboard" in config.report_to:
        from llmlab.training.callbacks.tensorboard import TensorBoard

        writers.append(TensorBoard(folder.path, disk, facts))
    if services := [name for name in config.report_to if name != "tensorboard"]:
        writers.append(TrackerFacts(services, facts, folder))
    measures = context.reporter.is_live and config.kind in READING
    start = TrainingStart(
        config.kind,
        folder.path,
        keys=KEYS if keys else {},
        flops_per_token=flops_per_token(job.model) if measures else 0.0,
        peak_flops=peak_flops(context.device, context.precision) if measures else 0.0,
    )
    answers = samples(context, job, folder)
    place, engine = NoteStep(RankFiles.of_this_process()), SayEngine(context.sharing, context.reporter)
    shown = [engine, place, ReportProgress(context.reporter, start)]
    speed = [KeepSpeed(config, context.seconds)] if is_main() else []
    return [*writers, *answers, *([keys] if keys else []), *shown, *speed]


def samples(context: RunContext, job: Job, folder: RunFolder) -> list[TrainerCallback]:
    """Returns what takes samples; nothing where the model says nothing, or no process has all of it."""
    length = context.config.sample_tokens
    if not length or processes() > 1 or not job.model.can_generate():
        return []
    prompt = opening(job.data, job.tokenizer)
    show = context.reporter.sample
    return (
        [Samples(folder, cast(LanguageModel, job.model), job.tokenizer, prompt, length, show)]
        if prompt
        else []
    )


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
