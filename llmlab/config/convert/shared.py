"""Options of transformers' TrainingArguments (5.23), which TRL and LLaMA-Factory take as they are."""

from __future__ import annotations

from typing import Any

from llmlab.config.convert.rules import Draft, Needless, Rule, To, Unfit, Without, real, whole

SCHEDULERS = {
    "cosine": "cosine",
    "linear": "linear",
    "polynomial": "polynomial",
    "constant": "none",
    "constant_with_warmup": "none",
}
OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"), "adamw"),
    "adafactor": "adafactor",
    "lion_32bit": "lion",
    "muon": "muon",
}
ATTENTION = {
    "sdpa": "sdpa",
    "eager": "eager",
    "flash_attention_2": "flash",
    "flash_attention_3": "flash",
    "kernels-community/flash-attn2": "flash",
    "kernels-community/flash-attn3": "flash",
    "flex_attention": "flex",
    "auto": "auto",
}
REPORTERS = ("tensorboard", "wandb", "trackio")
ROWS = "rows are prepared as they are read"
HUB = "`llmlab push` uploads a finished model"
AS_SAVED = "the run's folder keeps checkpoints for resuming and the best model"


def smoothing(value: Any) -> float:
    """Returns a label smoothing; of our losses only those that smooth have one."""
    if not real(value):
        raise Unfit("0 is no smoothing: `loss_type` sigmoid, hinge or ipo have none")
    return real(value)


def optimizer(value: Any) -> str:
    """Returns our name of an optimizer."""
    if value in OPTIMIZERS:
        return OPTIMIZERS[value]
    if str(value) in ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"):
        raise Unfit("llmlab keeps AdamW's states in full: `optimizer` is adamw")
    raise Unfit(f"`optimizer` has a value for {', '.join(OPTIMIZERS)} only")


TRAINING: dict[str, Rule] = {
    "learning_rate": To("learning_rate", read=real),
    "weight_decay": To("weight_decay", read=real),
    "adam_beta1": To("adam_beta1", read=real),
    "adam_beta2": To("adam_beta2", read=real),
    "adam_epsilon": To("adam_eps", read=real),
    "max_grad_norm": To("max_grad_norm", read=real),
    "optim": To("optimizer", read=optimizer),
    "lr_scheduler_type": To("scheduler", SCHEDULERS),
    "logging_steps": To("log_every", read=whole),
    "save_steps": To("save_every", read=whole),
    "eval_steps": To("eval_every", read=whole),
    "save_total_limit": To("save_total_limit", read=whole),
    "seed": To("seed"),
    "dataloader_num_workers": To("dataloader_workers"),
    "gradient_checkpointing": To("gradient_checkpointing"),
    "torch_compile": To("compile"),
    "output_dir": To("output_dir"),
    "attn_implementation": To("attention_backend", ATTENTION),
    "do_train": Needless("`llmlab run` trains", (True,)),
    "do_eval": Needless("held-out rows are always measured", (True,)),
    "logging_first_step": Needless("the first step is logged by itself", (True,)),
    "eval_strategy": Needless("held-out rows are measured every `eval_every` steps", ("steps",)),
    "save_strategy": Needless("checkpoints are saved every `save_every` steps", ("steps",)),
    "logging_strategy": Needless("figures are logged every `log_every` steps", ("steps",)),
    "metric_for_best_model": To("metric_for_best", {"loss": "eval_loss", "eval_loss": "eval_loss"}),
    "greater_is_better": Without("which values are better follows from the figure (`metric_for_best`)"),
    "load_best_model_at_end": Needless("the result is the best model", (True,)),
    "remove_unused_columns": Needless("columns that no row needs are not read", (True,)),
    "per_device_eval_batch_size": Without("held-out rows are read in batches of the training's size"),
    "gradient_checkpointing_kwargs": Without("checkpointing is not reentrant"),
    "overwrite_output_dir": Without("a run never overwrites another"),
    "save_only_model": Without(AS_SAVED),
    "ddp_timeout": Without("`process_timeout` says how long a process waits for the others"),
    "dataset_num_proc": Without(ROWS),
    "trust_remote_code": Without("`llmlab run --trust NAME` trusts a model's own code"),
    "push_to_hub": Without(HUB),
    "hub_model_id": Without(HUB),
    "hub_strategy": Without(HUB),
    "tf32": Without("PyTorch's default is used"),
    "resume_from_checkpoint": Without("`llmlab run` resumes by itself (`--resume`)"),
    "fsdp": Without("`parallel` is auto: FSDP2 or ZeRO where the memory plan wants it"),
    "fsdp_config": Without("`parallel` is auto: FSDP2 or ZeRO where the memory plan wants it"),
}


def length_of_run(draft: Draft) -> None:
    """Converts epochs, steps and warm-up; steps that are set go before epochs."""
    steps, epochs = (
        draft.take("max_steps", to="max_steps"),
        draft.take("num_train_epochs", "num_epochs", to="epochs"),
    )
    if steps is not None and real(steps) > 0:
        draft.set("max_steps", whole(steps))
        if epochs is not None:
            name = "num_train_epochs" if "num_train_epochs" in draft.converted else "num_epochs"
            draft.leave(name, epochs, "`max_steps` is set, which goes before epochs")
    elif epochs is not None:
        draft.set("epochs", real(epochs))
    if steps is not None and real(steps) <= 0:
        draft.needless["max_steps"] = "epochs say how long the run is"
        draft.converted.pop("max_steps")
    warmup, share = (
        draft.take("warmup_steps", to="warmup_steps"),
        draft.take("warmup_ratio", to="warmup_ratio"),
    )
    if warmup is not None and 0 < real(warmup) < 1:  # transformers 5 reads it so
        draft.set("warmup_ratio", real(warmup))
    elif warmup:
        draft.set("warmup_steps", whole(warmup))
    elif share:
        draft.set("warmup_ratio", real(share))
    else:
        draft.set("warmup_steps", 0)


def batches(draft: Draft, per_device: str) -> None:
    """Converts the batch: of methods that count whole updates, the product is the batch size."""
    size = whole(draft.take(per_device, to="batch_size") or 1)
    accumulation = whole(draft.take("gradient_accumulation_steps", to="gradient_accumulation_steps") or 1)
    if "mini_batch_size" in draft.cls.model_fields:
        draft.set("batch_size", size * accumulation)
        draft.set("mini_batch_size", size)
        for name in (per_device, "gradient_accumulation_steps"):
            if name in draft.converted:
                draft.converted[name] = "batch_size, mini_batch_size"
    else:
        draft.set("batch_size", size)
        draft.set("gradient_accumulation_steps", accumulation)


def precision(draft: Draft) -> None:
    """Converts bf16 and fp16, which may be "auto"."""
    bf16, fp16 = draft.take("bf16", to="precision"), draft.take("fp16", to="precision")
    if bf16 is True or bf16 == "full":
        draft.set("precision", "bf16")
    elif fp16 is True:
        draft.set("precision", "fp16")
    elif bf16 is False:
        draft.set("precision", "fp32")


def reporters(draft: Draft) -> None:
    """Converts report_to: a name or several."""
    named = draft.take("report_to", to="report_to")
    if named is None:
        return
    names = [named] if isinstance(named, str) else list(named)
    draft.set("report_to", [*REPORTERS] if "all" in names else [one for one in names if one in REPORTERS])
    others = [name for name in names if name not in (*REPORTERS, "none", "all")]
    if others:
        draft.leave("report_to", others, f"metrics go to {', '.join(REPORTERS)}")


def packed_anyway(draft: Draft, name: str) -> None:
    """Base training always packs."""
    if draft.cls.KIND == "pretrain" and draft.take(name) is not None:
        draft.converted.pop(name)
        draft.needless[name] = "base training packs documents into rows"


def quantised(draft: Draft, bits: Any) -> None:
    """Sets the adapter and the precision of what stays frozen; `bits` are 4, 8 or None."""
    if bits == 4:
        draft.set("adapter", "qlora")
    elif bits == 8:
        draft.set("load_in", "8bit")


def sharding(draft: Draft) -> None:
    """Converts deepspeed: which stage its file stands for; the file itself is not read."""
    file = draft.take("deepspeed", to="parallel")
    if file is None:
        return
    name = str(file).rsplit("/", 1)[-1].lower()
    stage = next((one for one in ("2", "3") if any(f"{z}{one}" in name for z in ("z", "zero", "zero_"))), "")
    if stage:
        draft.set("parallel", f"zero{stage}")
    reason = (
        "its file is not read: `deepspeed_config` names one" if stage else "`parallel` chooses ZeRO's stage"
    )
    draft.leave("deepspeed", file, reason)


# of GRPO, as TRL names them; axolotl has them in its block `trl`
GENERATION: dict[str, Rule] = {
    "beta": To("beta", read=real),
    "num_generations": To("group_size", read=whole),
    "max_completion_length": To("max_new_tokens", read=whole),
    "temperature": To("grpo_temperature", read=real),
    "top_p": To("top_p", read=real),
    "top_k": To("top_k"),
    "epsilon": To("clip_range", read=real),
    "num_iterations": To("iterations", read=whole),
    "vllm_mode": To("vllm", {"colocate": "colocate", "server": "server"}),
    "vllm_server_host": To("vllm_host"),
    "vllm_server_port": To("vllm_port"),
}
