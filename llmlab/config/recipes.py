"""Whole runs that are ready for the hardware they name: model, data and options, after published recipes."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from llmlab.config.loader import kind_class
from llmlab.config.presets import method_preset
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError


@dataclass(frozen=True)
class Recipe:
    """A run that others have published.

    Attributes:
        kind: of its config.
        title: what it makes.
        hardware: one sentence on what it is meant to run on.
        data: one sentence on what it learns from.
        source: one sentence on where its options come from, and what is not theirs.
        options: of the config; the others have their defaults.
        gpu_memory: bytes of one of the GPUs that it names.
    """

    kind: str
    title: str
    hardware: str
    data: str
    source: str
    options: dict[str, Any]
    gpu_memory: float

    def config(self, **changes: Any) -> TrainingConfig:
        """Returns the config, with options of one's own in place of the recipe's."""
        cls = kind_class(self.kind)
        assert issubclass(cls, TrainingConfig)
        return cls(**{"kind": self.kind, **self.options, **changes})


def _olmo3(policy: str, dataset: str, length: int) -> dict[str, Any]:
    """The options that both DPO stages of OLMo 3 share: 128 pairs an update on four GPUs."""
    return dict(
        policy_checkpoint=policy,
        datasets=[dataset],
        eval_fraction=0.01,
        epochs=1,
        beta=5.0,
        loss_type="sigmoid_norm",
        learning_rate=1e-6,
        scheduler="linear",
        warmup_ratio=0.1,
        max_length=length,
        max_prompt_length=length // 2,
        group_by_length=True,
        batch_size=32,
        mini_batch_size=2,  # the published runs take 4: the same update, and twice the activations
        precision="bf16",
        gradient_checkpointing=True,
        devices=4,
        parallel="zero2",
        eval_every=200,
        save_every=200,
    )


RECIPES: dict[str, Recipe] = {
    "olmo3-think-7b-dpo": Recipe(
        kind="dpo",
        title="OLMo 3 Think 7B, its preference stage",
        hardware="4 GPUs of 80 GB in one machine, sharded by ZeRO-2.",
        data="150k pairs of long reasoning; 87.7 % of them within 8,192 tokens, the others are cut.",
        source="OLMo 3 (Ai2, 2025) and its scripts in open-instruct: beta 5 on log-probabilities per token,"
        " 1e-6, one epoch, 128 pairs an update.",
        options=_olmo3("allenai/Olmo-3-7B-Think-SFT", "allenai/Dolci-Think-DPO-7B", 8192),
        gpu_memory=80e9,
    ),
    "olmo3-instruct-7b-dpo": Recipe(
        kind="dpo",
        title="OLMo 3 Instruct 7B, its preference stage",
        hardware="4 GPUs of 80 GB in one machine, sharded by ZeRO-2.",
        data="260k pairs of conversations, half of them under 682 tokens; 96.2 % within 4,096, the others are"
        " cut.",
        source="OLMo 3 (Ai2, 2025) and its scripts in open-instruct, which read up to 16,384 tokens on"
        " 16 GPUs; here it is 4,096 on 4.",
        options=_olmo3("allenai/Olmo-3-7B-Instruct-SFT", "allenai/Dolci-Instruct-DPO", 4096),
        gpu_memory=80e9,
    ),
    "zephyr-7b-dpo-qlora": Recipe(
        kind="dpo",
        title="Zephyr 7B, preferences through an adapter on 4-bit weights",
        hardware="One GPU of 12 GB.",
        data="64k pairs of UltraFeedback, judged by GPT-4; cleaned by Argilla.",
        source="The QLoRA recipe of the alignment handbook (Hugging Face, 2024): beta 0.01, 5e-6, one epoch,"
        " LoRA of rank 16 on all linear layers; 32 pairs an update, one at a time.",
        options=dict(
            policy_checkpoint="alignment-handbook/zephyr-7b-sft-full",
            datasets=["argilla/ultrafeedback-binarized-preferences"],
            eval_fraction=0.01,
            epochs=1,
            beta=0.01,
            learning_rate=5e-6,
            scheduler="cosine",
            warmup_ratio=0.1,
            adapter="qlora",
            lora_r=16,
            lora_alpha=16,
            lora_dropout=0.05,
            lora_targets="all-linear",
            max_length=1024,
            max_prompt_length=512,
            batch_size=32,
            mini_batch_size=1,
            precision="bf16",
            gradient_checkpointing=True,
            eval_every=100,
            save_every=100,
        ),
        gpu_memory=12e9,
    ),
    "tulu3-8b-sft": Recipe(
        kind="sft",
        title="Tulu 3 8B, full fine-tuning of Llama 3.1",
        hardware="8 GPUs of 80 GB in one machine, sharded by FSDP2.",
        data="939k conversations of the Tulu 3 mixture, to 4,096 tokens.",
        source="Tulu 3 (Lambert et al. 2024) and its script in open-instruct: 5e-6, linear, two epochs,"
        " 128 conversations an update.",
        options=dict(
            policy_checkpoint="meta-llama/Llama-3.1-8B",
            datasets=["allenai/tulu-3-sft-mixture"],
            eval_fraction=0.005,
            epochs=2,
            learning_rate=5e-6,
            weight_decay=0.0,
            scheduler="linear",
            warmup_ratio=0.03,
            max_length=4096,
            packing=False,
            batch_size=1,
            gradient_accumulation_steps=16,
            precision="bf16",
            gradient_checkpointing=True,
            devices=8,
            parallel="fsdp2",
            eval_every=500,
            save_every=500,
        ),
        gpu_memory=80e9,
    ),
    "fineweb-edu-1b": Recipe(
        kind="pretrain",
        title="A model of 1.1B parameters from nothing",
        hardware="2 machines of 8 GPUs of 80 GB; every GPU holds the whole model.",
        data="28B tokens of FineWeb-Edu, read as a stream.",
        source="FineWeb's ablations (Penedo et al. 2024): the tokenizer of GPT-2, rows of 2,048 tokens, 2.1M"
        " tokens an update, 28B in all; the shape is Llama 3.2 1B's, rate and warm-up are the lab's.",
        options=dict(
            model=dict(
                kind="model",
                tokenizer_name="openai-community/gpt2",
                vocab_size=50304,
                d_model=2048,
                n_layers=16,
                n_heads=32,
                n_kv_heads=8,
                d_ff=8192,
                rope_theta=500000.0,
                norm_eps=1e-5,
                max_seq_len=2048,
            ),
            datasets=[{"name": "HuggingFaceFW/fineweb-edu", "subset": "sample-100BT", "streaming": True}],
            max_steps=13400,
            learning_rate=3e-4,
            scheduler="cosine",
            warmup_steps=500,
            batch_size=8,
            gradient_accumulation_steps=8,
            dataloader_workers=2,
            precision="bf16",
            gradient_checkpointing=True,
            devices=8,
            nodes=2,
            parallel="ddp",
            eval_every=1000,
            save_every=1000,
        ),
        gpu_memory=80e9,
    ),
}


def preset_options(kind: str, name: str) -> dict[str, Any]:
    """Returns the options of a method that a preset has: a recipe, or one for models of about a size.

    Raises:
        LabError: when there is none of that name for the method.
    """
    recipe = RECIPES.get(name)
    if recipe and recipe.kind == kind:
        return dict(recipe.options)
    if recipe:
        raise LabError(f"the recipe {name} is for {recipe.kind}", remedy=f"llmlab new {recipe.kind}")
    if near := difflib.get_close_matches(name, RECIPES, n=1):
        raise LabError(f"there is no preset {name!r}", remedy=f"did you mean {near[0]}?")
    return method_preset(kind, name)
