"""The story of a run: refusals, folder, model and data, training, result."""

from __future__ import annotations

import importlib
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch

from llmlab.config.training import TrainingConfig
from llmlab.data.stream import PackedStream
from llmlab.errors import LabError
from llmlab.launching.rank_files import RankFiles
from llmlab.libraries import quiet_within
from llmlab.models.resolve import with_newest
from llmlab.planning.plan import make_plan, with_time
from llmlab.runs.disk import FullDisk
from llmlab.runs.evaluations import leave_after
from llmlab.runs.folder import RunFolder
from llmlab.training.callbacks.patience import PatienceExhausted
from llmlab.training.callbacks.stop import StopOnSignal, Stopped
from llmlab.training.engine.announce import bytes_written, counted, outline, run_facts, tracker_facts
from llmlab.training.engine.arguments import (
    effective_batch,
    resolve_max_steps,
)
from llmlab.training.engine.assembly import Kit, build_trainer
from llmlab.training.engine.checkpointing import CheckpointWriter
from llmlab.training.engine.context import RunContext
from llmlab.training.engine.distributed import (
    broadcast_from_main,
    init_process_group,
    is_main,
    processes,
    refuse_unshared,
    times_started_again,
)
from llmlab.training.engine.errors import (
    OutOfMemory,
    compile_failed,
    halve_micro_batch,
    is_compile_error,
    is_connection_error,
    is_out_of_memory,
    out_of_memory,
    process_lost,
    write_failed,
)
from llmlab.training.engine.evaluator import Evaluator
from llmlab.training.engine.job import Job, Prepare, RunResult
from llmlab.training.engine.memory import begin_peak, free_memory, tune_malloc
from llmlab.training.engine.outcome import (
    finish,
    held_out_figures,
    load_without_training,
    note,
    note_costs,
)
from llmlab.training.engine.progress import keys_of, progress_callbacks
from llmlab.training.engine.reporter import SILENT, Reporter
from llmlab.training.engine.resume import (
    ResumePlan,
    as_run,
    finished_run,
    resolve_resume,
    with_kernel_as_begun,
)
from llmlab.training.engine.watching import metric_of, suite_of, watch_of
from llmlab.training.engine.workers import JobWorkers
from llmlab.training.registry import STAGES
from llmlab.training.trainers.base import LabTrainerMixin
from llmlab.trust import redact


def run(
    config: TrainingConfig,
    *,
    resume: str = "auto",
    reporter: Reporter = SILENT,
    fresh_optimizer: bool = False,
    evaluator: Evaluator | None = None,
) -> RunResult:
    """Trains as the config says and returns how it ended.

    Args:
        config: of a kind in the registry of methods.
        resume: "auto" resumes from the newest complete checkpoint of an unfinished run in the same folder,
            "never" starts anew in a folder of its own, a path names the checkpoint. "once" is "auto" for a
            job that may be started again: a finished run in the folder is the result.
        reporter: that it speaks to; left out, nothing is said.
        fresh_optimizer: whether a run that is resumed begins with an empty state of its optimizer.
        evaluator: that evaluates the model on the suite of the config while it learns.

    Raises:
        LabError: when what is asked for cannot be done; nothing has been written then. Whatever the folder
            and its checkpoints forbid is refused before anything is loaded or computed.
    """
    reporter = reporter if is_main() else SILENT
    tune_malloc(sparing=config.gradient_checkpointing)
    context = RunContext.of(config, reporter)
    if again := times_started_again():
        reporter.warning(f"the processes were started again ({again} of {config.restarts})")
    with quiet_within(reporter.warning):
        init_process_group(context.device, config.process_timeout)
        context = context.with_config(broadcast_from_main(lambda: with_newest(config))).with_sharing()
        if resume == "once":
            if folder := broadcast_from_main(lambda: finished_run(context.config)):
                return _as_it_ended(RunFolder(folder))
            resume = "auto"
        while True:
            try:
                return _attempt(context, resume, evaluator, fresh_optimizer=fresh_optimizer)
            except LabError as error:
                reporter.failed(error)
                raise
            except OutOfMemory as error:
                context, resume = context.with_config(halve_micro_batch(context.config, error.folder)), "auto"
                fresh_optimizer = False  # it is in the checkpoint that was just sealed
                reporter.warning(
                    f"out of memory: continuing with {effective_batch(context.config)}"
                    " (batch x accumulation x devices)"
                )
            free_memory()


def _as_it_ended(folder: RunFolder) -> RunResult:
    return RunResult(folder.path, folder.result(), held_out_figures(folder), 0, 0.0)


def _attempt(
    context: RunContext, resume: str, evaluator: Evaluator | None, *, fresh_optimizer: bool
) -> RunResult:
    with ExitStack() as stack:
        begin_peak(context.device)
        metric = broadcast_from_main(lambda: metric_of(context.config, evaluator))
        costs = make_plan(context.config)  # with the memory that is free before anything is loaded
        plan = broadcast_from_main(  # the main process locks the folder
            lambda: stack.enter_context(resolve_resume(context.config, resume, context.reporter))
        )
        if fresh_optimizer:
            plan = replace(plan, changed=plan.changed | {"optimizer"})
        # the options so that the run's folder, given to `llmlab run`, resumes this very run
        recorded = {"config": {**as_run(context.config), "output_dir": str(plan.run_dir)}, **plan.reads}
        job = _prepare(context.with_config(with_kernel_as_begun(context.config, plan, context.device)))
        suite = suite_of(context.config, evaluator, job)
        context = _with_length(context, job)
        folder = _open_folder(context, plan, job, recorded)
        costs = with_time(costs, context.config, counted(context.config, job))
        context.reporter.plan(outline(context, job, costs, suite))
        stop = StopOnSignal()
        keys = keys_of(context, job, stop)
        stack.enter_context(keys or nullcontext())
        disk = FullDisk(context.reporter.warning, stop.heard)
        checkpoints = CheckpointWriter(folder, context.config.save_total_limit, recorded, disk)
        callbacks = progress_callbacks(context, job, folder, keys, disk, tracker_facts(context, job, costs))
        workers = JobWorkers.of_this_job(stop, disk, folder.path)
        watch = watch_of(context, job, folder, suite, workers) if suite else None
        kit = Kit(stop, callbacks, checkpoints, metric, watch)
        trainer = build_trainer(context, plan, job, folder, kit)
        result = _fit(context, plan, job, trainer, folder, stop)
        note_costs(context, folder, costs)
        context.reporter.result(result)
        return result


def _prepare(context: RunContext) -> Job:
    torch.manual_seed(context.config.seed)
    context.reporter.status("loading the model, reading the data ...")
    prepare: Prepare = importlib.import_module(STAGES[context.config.kind].module).prepare
    job = prepare(context.config, context.device, context.precision, context.reporter)
    free_memory()  # what loading took beyond the model: a third of the peak of a small quantised one
    return job


def _with_length(context: RunContext, job: Job) -> RunContext:
    """Returns the context with the steps that epochs amount to, and says them."""
    rows, config = job.data.train, resolve_max_steps(context.config, job.data.train)
    if config.epochs is not None and not isinstance(rows, PackedStream):
        context.reporter.note(
            f"epochs {config.epochs:g} of {len(rows):,} rows: {config.max_steps:,} steps,"
            f" {config.warmup_steps:,} of them warm-up"
        )
    return context.with_config(config)


def _open_folder(context: RunContext, plan: ResumePlan, job: Job, recorded: dict[str, Any]) -> RunFolder:
    """Returns the run's folder, cleared of what kills left; a branch that is left is moved aside."""
    folder = RunFolder(plan.run_dir)
    refuse_unshared(folder.path)
    RankFiles.of_this_process().note_run(folder.path)
    if not is_main():
        return folder
    if folder.path.is_dir():
        folder.remove_leftovers()
        if plan.leaves is not None and (moved := folder.move_aside_after(plan.leaves)):
            *names, place = moved
            context.reporter.warning(
                f"{', '.join(names)}: later than step {plan.leaves}, so moved to {place}"
            )
    # what an earlier attempt from the start took is not this one's
    fresh: dict[str, Any] = {"seconds": 0.0, "summary": {}} if plan.step < 0 else {}
    record = {**recorded, **run_facts(context, job), **fresh}
    RunFolder.create(plan.run_dir, record, needed_bytes=bytes_written(context, job))
    folder.truncate_after(plan.step)
    leave_after(folder.path, plan.step)
    context.reporter.opened(folder.path)
    return folder


def _fit(
    context: RunContext,
    plan: ResumePlan,
    job: Job,
    trainer: LabTrainerMixin,
    folder: RunFolder,
    stop: StopOnSignal,
) -> RunResult:
    """Trains, and returns the result; whatever happens is noted in the record."""
    try:
        with stop:
            if plan.step >= context.config.max_steps:
                load_without_training(trainer, plan)  # killed after the last step: one more would be done
            else:
                with suppress(PatienceExhausted):  # killed behind the validation that ended it
                    trainer.train(resume_from_checkpoint=str(plan.checkpoint) if plan.checkpoint else None)
            return finish(context, job, trainer, folder, stop)
    except Stopped:
        trainer.save_snapshot()
        note(folder, status="stopped", step=trainer.state.global_step)
        return RunResult(folder.path, None, held_out_figures(folder), stop.received, context.seconds())
    except (KeyboardInterrupt, LabError):
        note(folder, status="stopped")
        raise
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error) and context.config.out_of_memory == "halve" and processes() == 1:
            context.reporter.close()
            trainer.save_snapshot()
            note(folder, status="stopped")
            raise OutOfMemory(folder.path) from None
        if processes() > 1 and is_connection_error(error):
            note(folder, status="stopped")
            raise process_lost(folder.path, context.config, error) from None
        note(folder, status="failed", error=redact(str(error)[:500]))
        if is_out_of_memory(error):
            raise out_of_memory(folder.path) from None
        if is_compile_error(error):
            raise compile_failed(folder.path, error) from None
        raise
    except OSError as error:
        note(folder, status="stopped")
        raise write_failed(folder.path, error) from None
    finally:
        context.reporter.close()
