"""TRL's command line, `trl sft --config FILE`: names of TRL 1.16 (examples/cli_configs, trl/scripts)."""

from __future__ import annotations

from typing import Any

from llmlab.config.convert import shared
from llmlab.config.convert.rules import Draft, Needless, Rule, To, Unfit, Without, real, whole

# options that tell the method, which the file does not name; the first that fits
SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("grpo", ("num_generations", "max_completion_length", "reward_funcs", "reward_model_name_or_path")),
    ("reward", ("center_rewards_coefficient",)),
    ("dpo", ("beta", "precompute_ref_log_probs", "label_smoothing", "f_divergence_type", "loss_weights")),
    ("sft", ("packing", "assistant_only_loss", "completion_only_loss", "dataset_text_field", "eval_packing")),
)
# what TRL takes where a file says nothing, and llmlab another value
DEFAULTS: dict[str, dict[str, Any]] = {
    "": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "adam_beta2": 0.999,
        "gradient_checkpointing": True,
        "report_to": "none",
    },
    "sft": {"learning_rate": 2e-5, "max_length": 1024, "packing": False},
    "dpo": {"learning_rate": 1e-6, "max_length": 1024, "beta": 0.1},
    "reward": {"learning_rate": 1e-4, "max_length": 1024},
    "grpo": {
        "learning_rate": 1e-6,
        "beta": 0.0,
        "num_generations": 8,
        "max_completion_length": 512,
        "num_iterations": 1,
    },
}
REWARDS = {"accuracy_reward": "a reward of yours, `module:function`, or exact_match"}


def loss_of_pairs(value: Any) -> str:
    """Returns the loss of DPO: one name, or a list of one."""
    names = [value] if isinstance(value, str) else list(value)
    if len(names) > 1:
        raise Unfit("losses are not combined: name one")
    return str(names[0])


RULES: dict[str, Rule] = {
    **shared.TRAINING,
    "run_name": To("name"),
    "max_length": To("max_length", read=whole),
    "max_prompt_length": To("max_prompt_length", read=whole),
    "packing": To("packing"),
    "packing_strategy": Needless("rows are packed whole", ("bfd", "bfd_split")),
    "padding_free": To("padding_free"),
    "group_by_length": To("group_by_length"),
    "assistant_only_loss": To("loss_on", {True: "assistant", False: "all"}),
    "completion_only_loss": To("loss_on", {True: "assistant", False: "all"}),
    "label_smoothing": To("label_smoothing", read=shared.smoothing),
    "loss_type": To("loss_type", read=loss_of_pairs),
    "precompute_ref_log_probs": To("reference", {True: "sequential", False: "live"}),
    "precompute_ref_batch_size": To("reference_batch_size", read=whole),
    "center_rewards_coefficient": To("center_rewards", read=real),
    **shared.GENERATION,
    "vllm_gpu_memory_utilization": To("vllm_memory", read=real),
    "vllm_tensor_parallel_size": To("vllm_tensor_parallel"),
    "dataset_text_field": Needless("a column `text` is recognised", ("text",)),
    "eos_token": Without("the tokenizer says what ends an answer"),
    "pad_token": Without("the tokenizer says what pads"),
    "dtype": Without("weights that train are kept in fp32; `precision` is that of the matrix products"),
    "model_revision": Needless("the newest revision is read", ("main",)),
    "use_bnb_nested_quant": Needless("double quantisation is on", (True,)),
    "bnb_4bit_quant_type": Needless("4-bit weights are nf4", ("nf4",)),
    "lora_task_type": Needless("the method says it", ("CAUSAL_LM", "SEQ_CLS")),
    "env": Without("environment variables are set in the shell"),
}


def special(draft: Draft) -> None:
    """Converts what takes more than a rule."""
    shared.length_of_run(draft)
    shared.batches(draft, "per_device_train_batch_size")
    shared.precision(draft)
    shared.reporters(draft)
    shared.sharding(draft)
    if (model := draft.take("model_name_or_path", to=draft.start)) is not None:
        draft.set(draft.start, model)
    _data(draft)
    _adapter(draft)
    if draft.cls.KIND == "grpo":
        _rewards(draft)
        if draft.data.get("use_vllm") is True and "vllm_mode" not in draft.data:
            draft.data["vllm_mode"] = "colocate"
        if draft.take("use_vllm", to="vllm") is not True:
            draft.data.pop("vllm_mode", None)


def _adapter(draft: Draft) -> None:
    bits = (
        4
        if draft.take("load_in_4bit", to="load_in")
        else 8
        if draft.take("load_in_8bit", to="load_in")
        else None
    )
    names = {"lora_r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    if not draft.take("use_peft", to="adapter"):
        for name in (*names, "lora_target_modules"):
            if (value := draft.data.pop(name, None)) is not None:
                draft.leave(name, value, "`use_peft` is not set: there is no adapter")
        return
    draft.set("adapter", "lora")
    shared.quantised(draft, bits)
    for name, option in names.items():
        if (value := draft.take(name, to=option)) is not None:
            draft.set(option, value)
    if (targets := draft.take("lora_target_modules", to="lora_targets")) is not None:
        draft.set("lora_targets", "all-linear" if targets in ("all-linear", ["all-linear"]) else targets)


def _data(draft: Draft) -> None:
    streaming = draft.take("dataset_streaming", "streaming", to="datasets.streaming")
    name, subset = (
        draft.take("dataset_name", to="datasets"),
        draft.take("dataset_config", to="datasets.subset"),
    )
    split = draft.take("dataset_train_split", to="datasets.split")
    test = draft.take("dataset_test_split", to="eval_datasets")
    mixture = draft.take("datasets", to="datasets")
    sources = [{"name": name, "subset": subset, "split": split}] if name and not mixture else []
    for number, part in enumerate(mixture or []):
        sources.append({"name": part.get("path"), "subset": part.get("name"), "split": part.get("split")})
        for key in part.keys() - {"path", "name", "split"}:
            reason = "`weight` mixes without an end" if key == "fraction" else "a source has no such option"
            draft.leave(f"datasets.{number}.{key}", part[key], reason)
    if streaming:
        sources = [{**one, "streaming": True} for one in sources]
    if sources:
        draft.set("datasets", [_set(one) for one in sources])
    if test and name:
        draft.set("eval_datasets", [_set({"name": name, "subset": subset, "split": test})])
    if (share := draft.take("test_split_size", to="eval_fraction")) is not None:
        draft.set("eval_fraction", real(share))


def _set(source: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in source.items() if value is not None}


def _rewards(draft: Draft) -> None:
    rewards = []
    if model := draft.take("reward_model_name_or_path", to="reward_model"):
        rewards.append({"name": model})
    for function in draft.take("reward_funcs", to="reward_model") or []:
        if "." in function:
            module, _, name = function.rpartition(".")
            rewards.append({"name": f"{module}:{name}"})
        else:
            draft.leave(
                "reward_funcs", function, "TRL's own reward: name one of `llmlab new grpo`, or code of yours"
            )
    if rewards:
        draft.set("reward_model", rewards)
