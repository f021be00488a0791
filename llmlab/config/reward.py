"""`kind: "reward"`: a reward model from pairs (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from llmlab.config.adapters import COMPARED, AdapterOptions
from llmlab.config.batches import AccumulatedBatches
from llmlab.config.options import option
from llmlab.config.schedule import steps_option, warmup_option
from llmlab.config.sft import POLICY
from llmlab.config.sources import SourceConfig
from llmlab.config.training import (
    NEWEST,
    Bounds,
    FirstOrder,
    LengthOptions,
    ModelSort,
    first_order_option,
)
from llmlab.config.watching import Better
from llmlab.titles import TITLES


class RewardConfig(AdapterOptions, LengthOptions, AccumulatedBatches):
    """Learn to score answers from pairs of a better and a worse one."""

    KIND: ClassVar[str] = "reward"
    TITLE: ClassVar[str] = TITLES["reward"]
    METHOD: ClassVar[str] = "reward"
    MAKES: ClassVar[ModelSort] = "scorer"
    USUAL_RATES: ClassVar[tuple[Bounds, Bounds]] = ((1e-6, 1e-4), (2e-5, 1e-3))
    METRICS: ClassVar[Mapping[str, Better]] = {"eval_loss": "lower", "eval_accuracy": "higher"}
    kind: Literal["reward"] = "reward"

    policy_checkpoint: str = option(
        NEWEST,
        **{
            **POLICY,
            "title": "Checkpoint",
            "description": (
                "What gets the scoring head: a run, a folder, a hub id, a GGUF file; `newest` is the newest "
                "run that fits."
            ),
        },
        min_length=1,
        resume="refuse",
    )
    datasets: list[SourceConfig] = option(
        lambda: [SourceConfig(name="Anthropic/hh-rlhf")],
        "Datasets",
        "Where the preference pairs come from.",
        min_length=1,
    )
    center_rewards: float = option(
        0.01,
        "Reward centering",
        "Weight of the pull of all scores towards zero, so that they stay comparable; 0 for none.",
        typical="0.01",
        advanced=True,
        ge=0,
    )
    lora_dropout: float = option(0.0, **COMPARED)
    max_length: int = option(
        1024,
        "Max sequence length",
        "Prompt and answer together; longer answers are truncated.",
        unit="tokens",
        ge=2,
    )
    max_prompt_length: int = option(
        512,
        "Max prompt length",
        "Longer prompts are truncated at their start.",
        unit="tokens",
        advanced=True,
        ge=1,
    )
    max_steps: int = steps_option(2000)
    optimizer: FirstOrder = first_order_option()
    learning_rate: float = option(
        1e-5,
        "Learning rate",
        "Size of the updates at the peak of the schedule.",
        typical="5e-6 to 5e-5 for a large model, 1e-4 to 1e-3 for a small one or an adapter",
        gt=0,
        aliases=["lr"],
    )
    weight_decay: float = option(
        0.0,
        "Weight decay",
        "Decay of the weights towards zero; not applied to norms, biases and embeddings.",
        advanced=True,
        ge=0,
    )
    warmup_steps: int = warmup_option(100)
    batch_size: int = option(16, "Batch size", "Pairs per device and micro-step.", unit="pairs", ge=1)
    gradient_accumulation_steps: int = option(
        4,
        "Gradient accumulation steps",
        "Micro-steps per optimizer update; effective batch = batch size x accumulation x devices.",
        ge=1,
    )

    @model_validator(mode="after")
    def _check_suite(self) -> RewardConfig:
        if self.evaluation_suite is not None:
            raise ValueError(
                "`evaluation_suite` is for models that answer, and a reward model only scores: its pair"
                " accuracy is that of the held-out pairs (`eval_datasets`; `metric_for_best` eval_accuracy)"
            )
        return self
