"""The engine: from a config to a finished run, the same for every method.

A method prepares a `Job` (model, data, trainer class); everything else is here: arguments, folder, callbacks,
resume, the record, the result. All trainers are of the Hugging Face `Trainer` family, so accelerate gives
mixed precision, accumulation and every form of distributed training.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import math
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from llmlab import __version__
from llmlab.config import apply_changes
from llmlab.config.sources import shares, short_names
from llmlab.config.training import TrainingConfig
from llmlab.data.prepare import Prepared
from llmlab.data.stream import PackedStream
from llmlab.errors import LabError
from llmlab.models.load import attention_in_use, choose_device, choose_precision
from llmlab.models.log_probs import without_adapter
from llmlab.models.resolve import with_newest
from llmlab.planning.report import before_a_run
from llmlab.runs.folder import RunFolder
from llmlab.screen import LabConsole, screen
from llmlab.training.callbacks.core import DataPosition, KeepBest, Record, StopOnSignal, save_model
from llmlab.training.callbacks.keys import KEYS, Keys
from llmlab.training.callbacks.non_finite import Trouble
from llmlab.training.callbacks.samples import Samples, opening
from llmlab.training.dashboard import Dashboard
from llmlab.training.engine.environment import (
    agreed,
    free_memory,
    is_main,
    join_processes,
    keep_freed_memory,
    peak_flops,
    processes,
    quiet_within,
)
from llmlab.training.engine.run_dir import Start, as_run, begin
from llmlab.training.engine.snapshot import Stopped, go_back
from llmlab.training.optimizers import build_optimizer
from llmlab.training.reach import may_be_unreached
from llmlab.training.registry import STAGES
from llmlab.trust import redact, secret_in

SCHEDULERS = {
    "none": "constant_with_warmup",
    "cosine": "cosine",
    "linear": "linear",
    "polynomial": "polynomial",
}


@dataclass
class Job:
    """What a method gives to the engine.

    Attributes:
        model: to train, adapters included.
        tokenizer: saved beside it.
        data: training and validation rows.
        arguments: builds the trainer's arguments from those of the engine.
        trainer: builds the trainer from its keyword arguments.
        parent: what it started from, or None.
        best_by: the held-out figure that `best/` is chosen by: a loss (the lowest) or a reward (the highest).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: Prepared
    arguments: Callable[..., TrainingArguments]
    trainer: Callable[..., Trainer]
    parent: str | None
    best_by: str = "eval_loss"


@dataclass
class RunResult:
    """How a run ended.

    Attributes:
        folder: of the run.
        model: folder of the resulting model, or None when it was stopped.
        metrics: held-out figures before (`before_...`) and after.
        stopped_by: the number of the signal that stopped it, 0 when it finished.
        seconds: wall time of this call.
    """

    folder: Path
    model: Path | None
    metrics: dict[str, float]
    stopped_by: int
    seconds: float

    def to_json(self) -> str:
        """Returns the result line for machines."""
        return json.dumps(
            {
                "run": str(self.folder),
                "model": str(self.model) if self.model else None,
                "status": "stopped" if self.stopped_by else "done",
                "metrics": self.metrics,
                "seconds": round(self.seconds, 1),
            }
        )

    def summary(self) -> str:
        """Returns the result line for a person."""
        if self.stopped_by:
            return f"{self.folder} stopped; `llmlab run {self.folder}` goes on from here"
        shown = (
            "eval_loss",
            "eval_bits_per_byte",
            "eval_rewards/accuracies",
            "eval_accuracy",
            "eval_reward",
            "eval_reward_accuracy",
            "eval_perplexity",
            "eval_alpha",
            "train_loss",
        )
        figures = [
            f"{name.removeprefix('eval_')} {self.metrics[name]:.4g}" for name in shown if name in self.metrics
        ]
        return f"{self.model}  {'  '.join(figures)}"


def run(config: TrainingConfig, *, resume: str = "auto", console: Console | None = None) -> RunResult:
    """Trains as the config says and returns how it ended.

    Args:
        config: of a kind in the table of stages.
        resume: "auto" goes on from the newest sealed checkpoint of an unfinished run in the same folder,
            "never" starts anew in a folder of its own, a path names the checkpoint.
        console: where progress is shown; left out, standard error.

    Raises:
        LabError: when what is asked for cannot be done; nothing has been written then. Whatever the folder
            and its checkpoints forbid is refused before anything is loaded or computed.
    """
    began = time.perf_counter()
    console = (console or screen()) if is_main() else LabConsole(quiet=True)
    keep_freed_memory(sparing=config.gradient_checkpointing)
    if found := secret_in(json.dumps(config.to_json_dict(), ensure_ascii=False)):
        raise LabError(
            f"the config holds {found}, which would stand in records and on screens", remedy="take it out"
        )
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise LabError(
                f"`report_to` {name!r} is not installed", remedy=f"pip install {name}, or leave it out"
            )
    with quiet_within(console):
        join_processes(device)
        config = agreed(lambda: with_newest(config))
        while True:
            try:
                plan = before_a_run(config)  # of the memory that is free before anything is loaded
                return _run(config, resume, console, device, precision, began, plan)
            except OutOfMemory as error:
                config, resume = smaller(config, error.folder), "auto"
                more = f"going on with {effective_batch(config)} (batch x accumulation x devices)"
                console.print(f"out of memory: {more}", style="yellow", highlight=False)
            free_memory()


def _run(
    config: TrainingConfig,
    resume: str,
    console: Console,
    device: str,
    precision: str,
    began: float,
    plan: list[str],
) -> RunResult:
    with ExitStack() as stack:
        start = agreed(
            lambda: stack.enter_context(begin(config, resume, console))
        )  # the main process holds the folder
        path, checkpoint = start.path, start.checkpoint
        asked = {
            **as_run(config),
            "output_dir": str(path),
        }  # so that running the folder resumes this very run
        torch.manual_seed(config.seed)
        job: Job = importlib.import_module(STAGES[config.kind].module).prepare(
            config, device, precision, console
        )
        config = within_epochs(config, job)
        free_memory()  # what loading took beyond the model: a third of the peak of a small quantised one
        parameters = sum(p.numel() for p in job.model.parameters())
        folder = RunFolder(path)
        if is_main():
            _settle(folder, start, console)
            facts = _facts(config, job, device, precision, parameters)
            needed = _bytes_written(config, job, parameters)
            RunFolder.create(path, {"config": asked, **start.reads, **facts}, needed_bytes=needed)
            folder.forget_after(start.step)
        _say_plan(config, job, device, precision, console)
        for line in plan:
            style = "" if line.startswith("memory") else "yellow"
            console.print(line, style=style, highlight=False, soft_wrap=not console.is_terminal)
        say = partial(console.print, style="yellow", highlight=False, soft_wrap=True)
        stop, best = StopOnSignal(), KeepBest(folder, job.best_by)
        dashboard = Dashboard(f"{STAGES[config.kind].title} · {path}", console)
        position = DataPosition(job.data.train, rows_per_step(config))
        restored = position.restore(checkpoint, config.dataloader_workers)
        trouble = Trouble(folder, console, config.max_skipped_steps)
        record = Record(
            folder, job.data.bytes_per_token, say, stop.heard, endless=position.stream is not None
        )
        callbacks: list[TrainerCallback] = [record, trouble, stop]
        if job.data.eval:
            callbacks.append(best)
        if "tensorboard" in config.report_to:
            from llmlab.training.callbacks.tensorboard import TensorBoard

            callbacks.append(TensorBoard(path, say, stop.heard))
        callbacks += samples(config, job, folder, dashboard)
        keys = (
            Keys(stop, dashboard, validates=bool(job.data.eval))
            if is_main() and processes() == 1 and Keys.there()
            else None
        )
        callbacks += [keys, dashboard] if keys else [dashboard]
        if keys:
            dashboard.hint = KEYS
        if console.is_terminal and config.kind in READING:
            dashboard.flops_per_token, dashboard.peak = (
                flops_per_token(job.model),
                peak_flops(device, precision),
            )
        trainer = job.trainer(
            model=job.model,
            args=job.arguments(
                **trainer_arguments(config, path, device, precision, job),
                eval_on_start=bool(job.data.eval) and checkpoint is None,  # the figures before training
                ignore_data_skip=restored,
            ),
            train_dataset=job.data.train,
            eval_dataset=_eval_sets(job, config.eval_rows),
            processing_class=job.tokenizer,
            callbacks=callbacks,
            optimizers=(build_optimizer(job.model, config), None),
        )
        for noisy in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(noisy)
        best.trainer, trainer.trouble, trainer.position = trainer, trouble, position
        trainer.keep, trainer.changed = config.save_total_limit, start.changed
        trainer.run_config = {"config": asked, **start.reads}
        trainer.say, trainer.stopped = say, stop.heard
        if processes() == 1 and not config.compile:
            stop.watch(without_adapter(job.model))  # answers are generated without the wrapper of an adapter
            if trainer.model is not job.model:  # PPO: the policy with its value head
                stop.watch(trainer.model)
        with keys or nullcontext():
            return _train(trainer, job, config, folder, checkpoint, stop, best, dashboard, began)


def _settle(folder: RunFolder, start: Start, console: Console) -> None:
    """Clears a run's folder of what kills left,
    and sets aside what belongs to a branch that this start leaves.
    """
    if not folder.path.is_dir():
        return
    folder.clean_up()
    if start.leaves is None:
        return
    if moved := folder.set_aside_after(start.leaves):
        *names, place = moved
        console.print(
            f"{', '.join(names)}: of the branch behind step {start.leaves} that is left, set aside in"
            f" {place}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def samples(
    config: TrainingConfig, job: Job, folder: RunFolder, dashboard: Dashboard
) -> list[TrainerCallback]:
    """Returns what takes samples; nothing where the model says nothing, or no process has all of it."""
    if not config.sample_tokens or processes() > 1 or not job.model.can_generate():
        return []
    prompt = opening(job.data, job.tokenizer)
    return (
        [Samples(folder, job.model, job.tokenizer, prompt, config.sample_tokens, dashboard.sample)]
        if prompt
        else []
    )


def within_epochs(config: TrainingConfig, job: Job) -> TrainingConfig:
    """Returns the config with the steps that its epochs take where it counts in epochs,
    at most its `max_steps`.
    """
    epochs = getattr(config, "epochs", None)
    if not epochs:
        return config
    steps = min(config.max_steps, max(1, math.ceil(len(job.data.train) * epochs / rows_per_step(config))))
    return apply_changes(config, {"max_steps": steps, "warmup_steps": min(config.warmup_steps, steps // 10)})


READING = ("pretrain", "sft")  # whose tokens all go forward and backward once


def flops_per_token(model: PreTrainedModel) -> float:
    """Returns the FLOPs of training on a token: 6 for each weight of a matrix that learns,
    4 for each that does not.
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


class OutOfMemory(Exception):
    """The device was full in the middle of an update; what was learned before it is sealed.

    Attributes:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.folder = folder


def smaller(config: TrainingConfig, folder: Path) -> TrainingConfig:
    """Returns the config with half the micro-batch and twice the accumulation: the effective batch stays.

    Raises:
        LabError: when a micro-batch is one row already, or is itself the update (PPO).
    """
    name = "mini_batch_size" if "mini_batch_size" in type(config).model_fields else "batch_size"
    size = getattr(config, name)
    if size % 2 or config.kind == "ppo":
        raise LabError(
            f"out of memory with `{name}` {size}, which cannot be halved"
            + (": a mini-batch is an update here" if config.kind == "ppo" else ""),
            where=str(folder),
            exit_code=1,
            remedy="lower `max_length`, set `gradient_checkpointing`, or use an adapter",
        )
    values = {name: size // 2, "output_dir": str(folder)}
    if name == "batch_size":
        values["gradient_accumulation_steps"] = config.gradient_accumulation_steps * 2
    return apply_changes(config, values)


def _train(
    trainer: Trainer,
    job: Job,
    config: TrainingConfig,
    folder: RunFolder,
    checkpoint: Path | None,
    stop: StopOnSignal,
    best: KeepBest,
    dashboard: Dashboard,
    began: float,
) -> RunResult:
    best.remember()
    try:
        with stop:
            if checkpoint and int(checkpoint.name.split("-")[1]) >= config.max_steps:
                _take_up(trainer, checkpoint)  # killed behind the last step: the library would do one more
            else:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return _finish(trainer, job, config, folder, stop, dashboard, began)
    except Stopped:
        _seal_moment(trainer)
        _note(folder, status="stopped", step=trainer.state.global_step)
        return RunResult(folder.path, None, _figures(folder), stop.received, time.perf_counter() - began)
    except KeyboardInterrupt:
        _note(folder, status="stopped")
        raise
    except LabError:
        _note(folder, status="stopped")
        raise
    except (RuntimeError, MemoryError) as error:
        if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
            if config.out_of_memory == "halve" and processes() == 1:
                dashboard.close()
                _seal_moment(trainer)
                _note(folder, status="stopped")
                raise OutOfMemory(folder.path) from None
            _note(folder, status="failed", error=redact(str(error)[:500]))
            raise LabError(
                "out of memory",
                where=str(folder.path),
                exit_code=1,
                remedy=(
                    "lower `batch_size` or `max_length`, set `gradient_checkpointing`, use an adapter, or let"
                    ' the lab halve the micro-batch with `out_of_memory` "halve"'
                ),
            ) from None
        _note(folder, status="failed", error=redact(str(error)[:500]))
        raise
    except OSError as error:
        _note(folder, status="stopped")
        raise LabError(
            f"writing failed ({error.strerror})",
            where=str(folder.path),
            exit_code=1,
            remedy=f"free space; `llmlab run {folder.path}` goes on from the last sealed checkpoint",
        ) from None
    finally:
        dashboard.close()


def _seal_moment(trainer: Trainer) -> None:
    """Goes back to the end of the last update and seals a checkpoint there;
    before the first one there is nothing to keep.
    """
    if trainer.moment is None or not trainer.state.global_step:
        return
    go_back(trainer, trainer.moment)
    trainer._save_checkpoint(trainer.model, None)


def _finish(
    trainer: Trainer,
    job: Job,
    config: TrainingConfig,
    folder: RunFolder,
    stop: StopOnSignal,
    dashboard: Dashboard,
    began: float,
) -> RunResult:
    last = trainer.state.global_step
    metrics = _figures(folder)
    if isinstance(job.data.train, PackedStream) and (notes := job.data.train.notes()):
        _note(folder, data_notes=job.data.notes + notes)
        dashboard.console.print("\n".join(notes), style="yellow")
    if stop.received and last < config.max_steps:
        _note(folder, status="stopped", step=last)
        return RunResult(folder.path, None, metrics, stop.received, time.perf_counter() - began)
    seen = trainer.state.log_history  # the same in every process, unlike the file
    if job.data.eval and not any(line.get("step") == last and job.best_by in line for line in seen):
        trainer.evaluate()
        metrics = _figures(folder)
    has_best = (folder.path / "best").is_dir()
    if not config.save_best_only or not has_best:
        save_model(trainer, folder.path / "final", step=last)
    result = folder.path / ("best" if has_best and config.save_best_only else "final")
    seconds = time.perf_counter() - began
    if is_main():
        folder.update(
            status="done", step=last, result=result.name, metrics=metrics, seconds=round(seconds, 1)
        )
    return RunResult(folder.path, result, metrics, 0, seconds)


def _take_up(trainer: Trainer, checkpoint: Path) -> None:
    """Puts weights and state of a checkpoint into the trainer without training."""
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer._load_rng_state(str(checkpoint))


def trainer_arguments(
    config: TrainingConfig, path: Path, device: str, precision: str, job: Job
) -> dict[str, Any]:
    """Returns the keyword arguments of `TrainingArguments` that the config stands for."""
    evaluates = bool(job.data.eval)
    schedule = (
        config.scheduler if config.warmup_steps < config.max_steps else "none"
    )  # nothing is left to fall in
    ends = (
        {"lr_scheduler_kwargs": {"lr_end": min(1e-7, config.learning_rate / 10)}}
        if schedule == "polynomial"
        else {}
    )
    return dict(
        output_dir=str(path),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.micro_batch_size,
        per_device_eval_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.accumulation_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type=SCHEDULERS[schedule],
        **ends,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        logging_steps=config.log_every,
        logging_first_step=True,  # ten steps may take many minutes
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.eval_every,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=config.save_every,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        gradient_checkpointing=config.gradient_checkpointing,
        torch_compile=config.compile,
        seed=config.seed,
        data_seed=config.seed,
        full_determinism=config.deterministic,
        report_to=[name for name in config.report_to if name != "tensorboard"],  # `TensorBoard` writes it
        use_cpu=device == "cpu",
        ddp_find_unused_parameters=processes() > 1
        and may_be_unreached(job.model),  # to look for them costs a walk each step
        include_num_input_tokens_seen="all",
        # as in the main process: else each replica turns the library's warnings on again
        log_level_replica="passive",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
        dataloader_num_workers=config.dataloader_workers,
        accelerator_config={
            "dispatch_batches": False
        },  # every process reads the stream and takes its own rows of it
    )


def effective_batch(config: TrainingConfig) -> str:
    """Returns the effective batch as the product it is, `4 x 16 x 1 = 64`."""
    world = processes()
    total = config.micro_batch_size * config.accumulation_steps * world
    return f"{config.micro_batch_size} x {config.accumulation_steps} x {world} = {total}"


def _say_plan(config: TrainingConfig, job: Job, device: str, precision: str, console: Console) -> None:
    trained = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in job.model.parameters())
    share = f"{total:,} parameters" + (
        f", {trained:,} trained ({trained / total:.2%})" if trained != total else ""
    )
    facts = ", ".join(
        f"{key.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{key} {value}"
        for key, value in job.data.facts.items()
    )
    how = f"on {device} in {precision}, {attention_in_use(job.model)} attention"
    console.print(
        f"{share} {how}; effective batch {effective_batch(config)} (batch x accumulation x devices)"
    )
    console.print(f"data: {facts}", highlight=False)
    for name, rows in job.data.eval.items():
        which = (
            f"all {len(rows):,}"
            if len(rows) <= config.eval_rows
            else f"the first {config.eval_rows:,} of {len(rows):,}"
        )
        of = f" of {name}" if len(job.data.eval) > 1 else ""
        console.print(f"validation: {which} held-out rows{of}", highlight=False)
    for note in job.data.notes:
        console.print(note, style="yellow", highlight=False)
    if len(config.datasets) > 1:
        parts = zip(short_names(config.datasets), shares(config.datasets), strict=True)
        console.print("mixture: " + ", ".join(f"{name} {share:.1%}" for name, share in parts))


def _facts(config: TrainingConfig, job: Job, device: str, precision: str, parameters: int) -> dict[str, Any]:
    packages = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "pytorch-optimizer")
    return {
        "planned_steps": config.max_steps,
        "llmlab": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "device": device,
        "precision": precision,
        "attention": attention_in_use(job.model),
        "parameters": parameters,
        "trained_parameters": sum(p.numel() for p in job.model.parameters() if p.requires_grad),
        "data": job.data.facts,
        "data_notes": job.data.notes,
        "validation_rows": {name: min(config.eval_rows, len(rows)) for name, rows in job.data.eval.items()},
        "parent": job.parent,
        "seed": config.seed,
    }


def _bytes_written(config: TrainingConfig, job: Job, parameters: int) -> int:
    trained = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
    saved = 4 * (parameters if trained == parameters else trained)
    return saved * 3 * (config.save_total_limit + 1) + 2 * saved


def rows_per_step(config: TrainingConfig) -> int:
    """Returns how many rows all processes together take for one optimizer step."""
    return config.micro_batch_size * config.accumulation_steps * processes()


def _eval_sets(job: Job, count: int) -> Any:
    """Returns at most `count` held-out rows of each source: one dataset, several by name, or None."""
    held = {name: rows.select(range(min(count, len(rows)))) for name, rows in job.data.eval.items()}
    return held if len(held) > 1 else next(iter(held.values()), None)


def _note(folder: RunFolder, **changes: Any) -> None:
    if is_main():
        with suppress(
            LabError
        ):  # on a full disk the run's record stays as it was, which a resume can do with
            folder.update(**changes)


def _figures(folder: RunFolder) -> dict[str, float]:
    """Returns the first and the last value of every held-out figure, and the last training loss."""
    figures: dict[str, float] = {}
    for line in folder.metrics():
        for key, value in line.items():
            if key.startswith("eval_") and not key.endswith(("runtime", "per_second", "num_tokens")):
                if line["step"] == 0:
                    figures["before_" + key] = value
                else:
                    figures[key] = value
            elif key == "loss":
                figures["train_loss"] = value
    return figures


def exit_code(result: RunResult) -> int:
    """Returns 0, or 128 plus the signal that stopped the run."""
    return 128 + result.stopped_by if result.stopped_by else 0
