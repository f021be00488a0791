"""axolotl's YAML, `axolotl train FILE`: names of its schemas and examples (0.18)."""

from __future__ import annotations

import re
from typing import Any

from llmlab.config.convert import shared
from llmlab.config.convert.rules import Draft, Needless, Rule, To, Without, real, whole
from llmlab.errors import LabError

METHODS = {"dpo": "dpo", "ipo": "dpo", "grpo": "grpo"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "": {
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1.0,
        "lr_scheduler": "cosine",
        "weight_decay": 0.0,
        "adam_beta2": 0.999,
        "sequence_len": 512,
    },
    "sft": {"sample_packing": False, "train_on_inputs": False},
    "dpo": {"rl_beta": 0.1},
}
KERNELS = Without("it is a kernel of axolotl's own")
EVENLY = Without("intervals are counted in steps: `eval_every`, `save_every`")
WANDB = Without("Weights & Biases reads it from WANDB_PROJECT, WANDB_ENTITY and so on")
TOKENS = Without("the tokenizer's own special tokens are used")
PREPARED = Without("prepared data is found by its content")

RULES: dict[str, Rule] = {
    **shared.TRAINING,
    "optimizer": To("optimizer", read=shared.optimizer),
    "lr_scheduler": To("scheduler", shared.SCHEDULERS),
    "sequence_len": To("max_length", read=whole),
    "sample_packing": To("packing", {True: True, False: False}),
    "eval_sample_packing": Needless("held-out rows are packed as the others are"),
    "pad_to_sequence_len": Needless("packed rows are full"),
    "train_on_inputs": To("loss_on", {True: "all", False: "assistant"}),
    "val_set_size": To("eval_fraction", read=real),
    "group_by_length": To("group_by_length"),
    "excess_length_strategy": To("on_overflow", {"truncate": "cut", "drop": "drop"}),
    "chat_template": To("chat_template", {"tokenizer_default": "auto", "chatml": "chatml"}),
    "rl_beta": To("beta", read=real),
    "dpo_loss_type": To("loss_type"),
    "dpo_label_smoothing": To("label_smoothing", read=shared.smoothing),
    "dpo_padding_free": To("padding_free"),
    "precompute_ref_log_probs": To("reference", {True: "sequential", False: "live"}),
    "center_rewards_coefficient": To("center_rewards", read=real),
    "tensor_parallel_size": To("tensor_parallel", read=whole),
    "early_stopping_patience": To("patience", read=whole),
    "max_prompt_len": To("max_prompt_length", read=whole),
    "load_best_model_at_end": Needless("the result is the best model", (True,)),
    "save_safetensors": Needless("weights are saved as safetensors", (True,)),
    "strict": Needless("unknown options are always refused"),
    "evals_per_epoch": EVENLY,
    "saves_per_epoch": EVENLY,
    "save_first_step": EVENLY,
    "special_tokens": TOKENS,
    "tokens": Without("`added_tokens` of base training adds words"),
    "tokenizer_type": TOKENS,
    "model_type": Without("the model's own config says it"),
    "dataset_prepared_path": PREPARED,
    "dataset_processes": Without(shared.ROWS),
    "plugins": Without("plugins of axolotl have no counterpart"),
    "lora_model_dir": Without("an adapter is trained further by naming its run as the model"),
    "lora_modules_to_save": Without("an adapter trains the added matrices alone"),
    "loss_watchdog_threshold": Without("`max_skipped_steps` stops a run whose loss is not finite"),
    "loss_watchdog_patience": Without("`max_skipped_steps` stops a run whose loss is not finite"),
    **dict.fromkeys(
        ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "flash_attn_cross_entropy"), KERNELS
    ),
    **dict.fromkeys(
        ("liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_fused_linear_cross_entropy"), KERNELS
    ),
    **dict.fromkeys(("wandb_entity", "wandb_watch", "wandb_name", "wandb_log_model", "wandb_run_id"), WANDB),
}
ATTENTION = {
    "flash_attention": "flash",
    "sdp_attention": "sdpa",
    "flex_attention": "flex",
    "eager_attention": "eager",
}


def kind_of(data: dict[str, Any]) -> str:
    """Returns the kind of config that a file is.

    Raises:
        LabError: when there is no such method here.
    """
    if (method := data.get("rl")) is not None:
        if method not in METHODS:
            raise LabError(f"`rl` {method!r} has no method here", remedy=f"there are {', '.join(METHODS)}")
        return METHODS[method]
    if data.get("reward_model"):
        return "reward"
    parts = data.get("datasets") or []
    texts = [isinstance(one, dict) and one.get("type") == "completion" for one in parts]
    return "pretrain" if data.get("pretraining_dataset") or (texts and all(texts)) else "sft"


def special(draft: Draft) -> None:
    """Converts what takes more than a rule."""
    method = draft.take("rl", to="kind")
    if method == "ipo":
        draft.set("loss_type", "ipo")
    draft.take("reward_model", to="kind")
    shared.length_of_run(draft)
    shared.batches(draft, "micro_batch_size")
    shared.precision(draft)
    shared.sharding(draft)
    start = draft.start
    shared.packed_anyway(draft, "sample_packing")
    if (model := draft.take("base_model", to=start)) is not None:
        draft.set(start, model)
    if draft.take("wandb_project", to="report_to"):
        draft.set("report_to", ["wandb"])
        draft.leave("wandb_project", "", WANDB.reason)
    for name, backend in ATTENTION.items():
        if draft.take(name, to="attention_backend"):
            draft.set("attention_backend", backend)
    checkpointing = draft.take("gradient_checkpointing", to="gradient_checkpointing")
    if checkpointing is not None:
        draft.set("gradient_checkpointing", bool(checkpointing))
        if not isinstance(checkpointing, bool):
            draft.leave("gradient_checkpointing", checkpointing, "activations are computed again, not moved")
    _adapter(draft)
    _data(draft)
    for name, value in (draft.take("trl", to="kind") or {}).items():
        draft.data.setdefault(f"trl.{name}", value)
    if draft.cls.KIND == "grpo":
        _generation(draft)


def _adapter(draft: Draft) -> None:
    bits = (
        4
        if draft.take("load_in_4bit", to="load_in")
        else 8
        if draft.take("load_in_8bit", to="load_in")
        else None
    )
    adapter = draft.take("adapter", to="adapter")
    options = {name: draft.take(name, to=name) for name in ("lora_r", "lora_alpha")}
    dropout = draft.take("lora_dropout", to="lora_dropout")
    targets = draft.take("lora_target_modules", to="lora_targets")
    if draft.take("lora_target_linear", to="lora_targets"):
        targets = "all-linear"
    if not adapter:
        return
    if adapter not in ("lora", "qlora"):
        raise LabError(f"`adapter` {adapter!r} has no counterpart", remedy="there are lora and qlora")
    draft.set("adapter", adapter)
    shared.quantised(draft, bits if adapter == "lora" else None)
    for name, value in options.items():
        if value is not None:
            draft.set(name, value)
    draft.set("lora_dropout", real(dropout or 0))
    if targets:
        draft.set(
            "lora_targets",
            targets if targets == "all-linear" else [targets] if isinstance(targets, str) else targets,
        )


def _generation(draft: Draft) -> None:
    rewards = []
    for function in draft.data.pop("trl.reward_funcs", None) or []:
        module, dot, name = function.rpartition(".")
        rewards.append({"name": f"{module}:{name}" if dot else function})
    if rewards:
        draft.converted["trl.reward_funcs"] = "reward_model"
        draft.set("reward_model", rewards)
    waiting, draft.data = draft.data, {}
    for name, value in waiting.items():
        if name.startswith("trl."):
            draft.data[name] = value
    draft.apply({f"trl.{name}": rule for name, rule in shared.GENERATION.items()})
    draft.data = {name: value for name, value in waiting.items() if not name.startswith("trl.")}


def _data(draft: Draft) -> None:
    for name, option in (
        ("datasets", "datasets"),
        ("pretraining_dataset", "datasets"),
        ("test_datasets", "eval_datasets"),
    ):
        parts = draft.take(name, to=option)
        if parts is None:
            continue
        parts = [parts] if isinstance(parts, (str, dict)) else parts
        sources = [_source(draft, f"{name}.{number}", part) for number, part in enumerate(parts)]
        draft.set(option, sources)


# fields of a dataset -> the part of a row that their column has
FIELDS = {
    "field_messages": "messages",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_prompt": "prompt",
    "field_instruction": "prompt",
    "field_input": "input",
    "field_output": "completion",
    "field_system": "system",
    "text_column": "text",
    "field": "text",
}
ROLES = ({"role": "role", "content": "content"}, {"role": "from", "content": "value"})
TYPES = ("alpaca", "chat_template", "completion", "chat_template.default", "pretrain")


def _source(draft: Draft, place: str, part: Any) -> dict[str, Any]:
    """Returns a source; what it cannot say is left."""
    if isinstance(part, str):
        return {"name": part}
    part = dict(part)
    files = part.pop("data_files", None)
    source: dict[str, Any] = {"name": files if isinstance(files, str) else part.pop("path", None)}
    part.pop("path", None)
    if isinstance(files, list):
        draft.leave(f"{place}.data_files", files, "a source is one file or one folder: name each by itself")
    shape = part.pop("type", None)
    if isinstance(shape, dict):  # a shape of one's own: its fields stand beside the others
        part = {**part, **shape}
    elif shape is not None and shape not in TYPES:
        draft.leave(
            f"{place}.type", shape, "the shape of rows is recognised; `format` and `columns` say another"
        )
    if (split := part.pop("split", None)) is not None:
        if re.fullmatch(r"[\w.+-]+", str(split)):
            source["split"] = split
        else:
            draft.leave(f"{place}.split", split, "a split is read as a whole: `max_rows` takes a part")
    for name, option in (("name", "subset"), ("shards", ""), ("ds_type", "")):
        value = part.pop(name, None)
        if value is not None and option:
            source[option] = value
        elif value is not None and name != "ds_type":
            draft.leave(f"{place}.{name}", value, "`max_rows` takes a part")
    columns = {FIELDS[name]: part.pop(name) for name in [*part] if name in FIELDS and part[name] is not None}
    if columns:
        source["columns"] = columns
    for name, value in part.items():
        standard = name == "message_property_mappings" and value in ROLES
        if value is not None and not standard and name != "roles":
            draft.leave(f"{place}.{name}", value, "a source has no such option")
    return source
