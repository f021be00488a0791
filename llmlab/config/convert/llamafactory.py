"""LLaMA-Factory's YAML, `llamafactory-cli train FILE`: names of its hparams and examples (0.9.6)."""

from __future__ import annotations

from typing import Any

from llmlab.config.convert import shared
from llmlab.config.convert.rules import Draft, Needless, Rule, To, Unfit, Without, real, whole
from llmlab.errors import LabError

STAGES = {"pt": "pretrain", "sft": "sft", "rm": "reward", "dpo": "dpo", "ppo": "ppo"}
LOSSES = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "": {
        "finetuning_type": "lora",
        "cutoff_len": 2048,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 3.0,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "adam_beta2": 0.999,
    },
    "sft": {"packing": False},
    "dpo": {"pref_beta": 0.1},
}


def _flag(name: str) -> Without:
    return Without(f"it is an optimisation of LLaMA-Factory's own ({name})")


RULES: dict[str, Rule] = {
    **shared.TRAINING,
    "run_name": To("name"),
    "cutoff_len": To("max_length", read=whole),
    "packing": To("packing", {True: True, False: False}),
    "neat_packing": Needless("packed rows do not see each other", (True,)),
    "train_on_prompt": To("loss_on", {True: "all", False: "assistant"}),
    "mask_history": Needless("every answer is learned", (False,)),
    "mix_strategy": To(
        "mixture_stop",
        {
            "interleave_under": "first_exhausted",
            "interleave_over": "all_exhausted",
            "concat": "first_exhausted",
        },
    ),
    "flash_attn": To(
        "attention_backend", {"auto": "auto", "disabled": "eager", "sdpa": "sdpa", "fa2": "flash"}
    ),
    "pref_beta": To("beta", read=real),
    "pref_loss": To("loss_type", LOSSES),
    "dpo_label_smoothing": To("label_smoothing", read=shared.smoothing),
    "ref_model": To("reference_checkpoint"),
    "reward_model": To("reward_model", read=lambda name: [{"name": name}]),
    "ppo_epochs": To("ppo_epochs"),
    "disable_gradient_checkpointing": To("gradient_checkpointing", {True: False, False: True}),
    "add_tokens": To("added_tokens", read=lambda text: [word.strip() for word in text.split(",")]),
    "quantization_method": Needless("bitsandbytes quantises", ("bnb", "BNB", "bitsandbytes")),
    "quantization_type": Needless("4-bit weights are nf4", ("nf4",)),
    "double_quantization": Needless("double quantisation is on", (True,)),
    "plot_loss": Needless("`llmlab runs report` draws it", (True,)),
    "template": Without("the model's own chat template is used; `chat_template` chatml is the other"),
    "preprocessing_num_workers": Without(shared.ROWS),
    "preprocessing_batch_size": Without(shared.ROWS),
    "overwrite_cache": Without("prepared data is found by its content"),
    "tokenized_path": Without("prepared data is found by its content"),
    "enable_liger_kernel": _flag("Liger kernels"),
    "use_unsloth": _flag("Unsloth"),
    "flash_attn_3": _flag("attention"),
}


def kind_of(data: dict[str, Any]) -> str:
    """Returns the kind of config that a file is.

    Raises:
        LabError: when there is no such method here.
    """
    stage = data.get("stage", "sft")
    loss = data.get("pref_loss", "sigmoid")
    if stage not in STAGES:
        raise LabError(f"`stage` {stage!r} has no method here", remedy=f"there are {', '.join(STAGES)}")
    if stage == "dpo" and loss not in LOSSES:
        raise LabError(f"`pref_loss` {loss!r} has no method here", remedy=f"there are {', '.join(LOSSES)}")
    if data.get("finetuning_type", "lora") not in ("full", "lora"):
        raise LabError(
            f"`finetuning_type` {data['finetuning_type']!r} has no counterpart", remedy="full or lora"
        )
    return STAGES[stage]


def special(draft: Draft) -> None:
    """Converts what takes more than a rule."""
    draft.take("stage", to="kind")
    shared.length_of_run(draft)
    shared.batches(draft, "per_device_train_batch_size")
    shared.precision(draft)
    shared.reporters(draft)
    shared.sharding(draft)
    start = draft.start
    shared.packed_anyway(draft, "packing")
    if (model := draft.take("model_name_or_path", to=start)) is not None:
        draft.set(start, model)
    _adapter(draft)
    _data(draft)


def _adapter(draft: Draft) -> None:
    bits = draft.take("quantization_bit", to="load_in")
    names = {"lora_rank": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    if draft.take("finetuning_type", to="adapter") == "full":
        return
    draft.set("adapter", "lora")
    shared.quantised(draft, bits)
    rank = draft.data.get("lora_rank") or 8
    for name, value in (("lora_rank", 8), ("lora_alpha", rank * 2), ("lora_dropout", 0.0)):
        if draft.data.get(name) is None:
            draft.defaults[name] = value
    for name, option in names.items():
        value = draft.take(name, to=option)
        draft.set(option, draft.defaults[name] if value is None else value)
    draft.set("lora_dropout", float(draft.options["lora_dropout"]))
    targets = draft.take("lora_target", to="lora_targets") or "all"
    listed = targets if isinstance(targets, list) else [one.strip() for one in str(targets).split(",")]
    draft.set("lora_targets", "all-linear" if listed == ["all"] else listed)


def _data(draft: Draft) -> None:
    limit, streaming = (
        draft.take("max_samples", to="datasets.max_rows"),
        draft.take("streaming", to="datasets.streaming"),
    )
    weights = _listed(draft.take("interleave_probs", to="datasets.weight"))
    for name, option in (("dataset", "datasets"), ("eval_dataset", "eval_datasets")):
        names = _listed(draft.take(name, to=option))
        if not names:
            continue
        sources: list[dict[str, Any]] = [{"name": one} for one in names]
        for source, weight in zip(sources, weights if option == "datasets" else [], strict=False):
            source["weight"] = real(weight)
        for source in sources:
            source |= {"max_rows": whole(limit)} if limit else {}
            source |= {"streaming": True} if streaming else {}
        draft.set(option, sources)
        draft.needless[name] = (
            "converted by name: give each its hub id or file, as data/dataset_info.json has it"
        )
    share = draft.take("val_size", to="eval_fraction")
    if share is not None and real(share) < 1:
        draft.set("eval_fraction", real(share))
    elif share is not None:
        draft.leave("val_size", share, "`eval_fraction` is a share, not a number of rows")


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return [one.strip() for one in value.split(",") if one.strip()]
    if not isinstance(value, list):
        raise Unfit(f"{value!r} is no list")
    return value
