"""A run's trainer, put together of its model, data, optimizer and callbacks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from llmlab.models.adapters import without_adapter
from llmlab.runs.figures import is_of_suite
from llmlab.runs.folder import RunFolder
from llmlab.training.callbacks.metrics import MetricsWriter
from llmlab.training.callbacks.non_finite import NonFiniteGuard
from llmlab.training.callbacks.patience import Patience
from llmlab.training.callbacks.stop import StopOnSignal
from llmlab.training.callbacks.stream_position import StreamProgress
from llmlab.training.engine.arguments import (
    rows_per_step,
    trainer_arguments,
)
from llmlab.training.engine.checkpointing import CheckpointWriter
from llmlab.training.engine.context import RunContext
from llmlab.training.engine.distributed import (
    processes,
)
from llmlab.training.engine.job import Job
from llmlab.training.engine.resume import ResumePlan
from llmlab.training.engine.tensor_parallel import divide_layers
from llmlab.training.optimizers import build_optimizer
from llmlab.training.trainers.base import LabTrainerMixin, RunServices
from llmlab.training.trainers.watched import Watch


@dataclass(frozen=True)
class Kit:
    """What a trainer is given beside its model and data.

    Attributes:
        stop: is told of signals.
        callbacks: that show progress.
        checkpoints: writes checkpoints.
        metric: the figure that the best weights are chosen by.
        watch: what evaluates the model on a suite; None for nothing.
    """

    stop: StopOnSignal
    callbacks: list[TrainerCallback]
    checkpoints: CheckpointWriter
    metric: str
    watch: Watch | None


def build_trainer(
    context: RunContext, plan: ResumePlan, job: Job, folder: RunFolder, kit: Kit
) -> LabTrainerMixin:
    """Returns the trainer of a run.

    Args:
        context: of the run.
        plan: of its resuming.
        job: its model, data and trainer class.
        folder: of the run.
        kit: what else it is given.
    """
    config, stop, checkpoints = context.config, kit.stop, kit.checkpoints
    stream = StreamProgress(
        job.data.train,
        rows_per_batch=rows_per_step(config) // config.accumulation_steps,
        batches_per_step=config.accumulation_steps,
        workers=config.dataloader_workers,
    )
    restored = stream.restore(plan.checkpoint)
    guard = NonFiniteGuard(folder, context.reporter.warning, config.max_skipped_steps)
    endless = stream.stream is not None
    if context.sharing.engine == "tensor":
        divide_layers(job.model, context.sharing.tensor_parallel, context.device)
    metrics = MetricsWriter(folder, job.data.bytes_per_token, checkpoints.disk, endless=endless)
    watched = kit.metric if job.data.eval or (kit.watch and is_of_suite(kit.metric)) else ""
    patience = Patience(watched, config.patience) if config.patience and watched else None
    trainer = job.trainer(
        model=job.model,
        args=job.arguments(
            **trainer_arguments(context, job, folder.path),
            # the figures before training
            eval_on_start=bool(job.data.eval or kit.watch) and plan.checkpoint is None,
            ignore_data_skip=restored,
        ),
        train_dataset=job.data.train,
        eval_dataset=_eval_sets(job, config.eval_rows),
        processing_class=job.tokenizer,
        callbacks=[metrics, guard, stop, *kit.callbacks],
        services=RunServices(
            run=folder,
            optimizer=partial(build_optimizer, config=config),
            sharing=context.sharing,
            checkpoints=checkpoints,
            guard=guard,
            stream=stream,
            best_by=watched,
            changed=plan.changed,
            patience=patience,
            watch=kit.watch,
        ),
    )
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    if processes() == 1 and not config.compile:
        stop.watch(without_adapter(job.model))  # answers are generated without the wrapper of an adapter
        if trainer.model is not job.model:  # PPO: the policy with its value head
            stop.watch(trainer.model)
    return trainer


def _eval_sets(job: Job, count: int) -> Dataset | dict[str, Dataset] | None:
    """Returns at most `count` held-out rows of each source: one dataset, several by name, or None."""
    rows = {name: rows.select(range(min(count, len(rows)))) for name, rows in job.data.eval.items()}
    return rows if len(rows) > 1 else next(iter(rows.values()), None)
