"""A config as the arguments of transformers' trainers: steps, batches, schedule, precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset

from llmlab.config.loader import apply_changes
from llmlab.config.training import TrainingConfig
from llmlab.data.stream import PackedStream
from llmlab.training.engine.context import RunContext
from llmlab.training.engine.distributed import processes
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import EffectiveBatch
from llmlab.training.engine.sharing import sharing_arguments
from llmlab.training.reach import may_be_unreached

C = TypeVar("C", bound=TrainingConfig)

SCHEDULERS = {
    "none": "constant_with_warmup",
    "cosine": "cosine",
    "linear": "linear",
    "polynomial": "polynomial",
}


def trainer_arguments(context: RunContext, job: Job, run_dir: Path) -> dict[str, Any]:
    """Returns the keyword arguments of `TrainingArguments` that the config stands for."""
    config, device, precision = context.config, context.device, context.precision
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
        output_dir=str(run_dir),
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
        eval_steps=config.eval_interval,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=config.save_interval,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        activation_checkpointing=config.gradient_checkpointing,
        torch_compile=config.compile,
        seed=config.seed,
        data_seed=config.seed,
        full_determinism=config.deterministic,
        run_name=run_dir.name,
        project="llmlab",  # of trackio
        report_to=[name for name in config.report_to if name != "tensorboard"],  # `TensorBoard` writes it
        use_cpu=device == "cpu",
        ddp_timeout=config.process_timeout,
        ddp_find_unused_parameters=processes() > 1
        and may_be_unreached(job.model),  # to look for them costs a walk each step
        include_num_input_tokens_seen="all",
        # as in the main process: else each replica turns torch's warnings on again
        log_level_replica="passive",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
        dataloader_num_workers=config.dataloader_workers,
        accelerator_config={
            "dispatch_batches": False,  # every process reads the stream and takes its own rows of it
            # else every device keeps whole gradients until the last micro-batch of an update
            "gradient_accumulation_kwargs": {"sync_each_batch": context.sharing.sharded},
        },
        **sharing_arguments(context.sharing, config),
    )


def resolve_max_steps(config: C, rows: Dataset | PackedStream) -> C:
    """Returns the config with the steps that its epochs take where it counts in epochs,
    at most its `max_steps`.

    Raises:
        LabError: when it warms up for longer than that.
    """
    if isinstance(rows, PackedStream):  # the config refuses epochs of a stream
        return config
    length = config.at_length(len(rows), config.replicas(processes()))
    return apply_changes(config, length) if length else config


def rows_per_step(config: TrainingConfig) -> int:
    """Returns how many rows all processes together take for one optimizer step."""
    return effective_batch(config).total


def effective_batch(config: TrainingConfig) -> EffectiveBatch:
    """Returns the rows of an optimizer update."""
    return EffectiveBatch(config.micro_batch_size, config.accumulation_steps, config.replicas(processes()))
