"""`kind: "dual_head"`: a language-model head and a reward head on one frozen backbone,
fused by a learned gate.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from llmlab.config.batches import AccumulatedBatches
from llmlab.config.hardware import Engine
from llmlab.config.options import LARGEST, option
from llmlab.config.schedule import epochs_option, warmup_option
from llmlab.config.training import (
    NEWEST,
    Bounds,
    FirstOrder,
    LengthOptions,
    ModelSort,
    first_order_option,
)
from llmlab.titles import TITLES

WITH_PAIRS = {"objective": ["preference", "mixed"]}


class DualHeadConfig(LengthOptions, AccumulatedBatches):
    """Align at generation time: two heads and a gate learn, the backbone stays as it is."""

    KIND: ClassVar[str] = "dual_head"
    TITLE: ClassVar[str] = TITLES["dual_head"]
    METHOD: ClassVar[str] = "dual_head"
    MAKES: ClassVar[ModelSort] = "dual_head"
    USUAL_RATES: ClassVar[tuple[Bounds, Bounds]] = ((5e-6, 1e-3), (5e-6, 1e-3))
    STARTS_FROM: ClassVar[str] = "backbone"
    frozen_base: ClassVar[bool] = True
    ENGINES: ClassVar[tuple[Engine, ...]] = ("ddp", "fsdp2")
    NO_TENSOR_PARALLEL: ClassVar[str] = "its model declares no plan by which layers are divided"
    kind: Literal["dual_head"] = "dual_head"

    backbone: str = option(
        NEWEST,
        "Backbone",
        "The model that stays frozen: a run of the lab, a Hugging Face folder, a hub id or a GGUF file;"
        " `newest` is the newest run that fits.",
        min_length=1,
        resume="refuse",
    )
    objective: Literal["preference", "sft", "mixed"] = option(
        "preference",
        "Objective",
        "What the rows teach.",
        choices={
            "preference": (
                "pairs: the chosen answer is learned, and the reward head tells it from the rejected one"
            ),
            "sft": "answers alone (of pairs the chosen one): no preference is learned",
            "mixed": "both: some rows teach an answer alone",
        },
    )
    sft_ratio: float = option(
        0.1,
        "SFT fraction",
        "Share of the rows that teach an answer alone: rows of conversations, or pairs whose rejected answer"
        " is left out.",
        applies_when={"objective": ["mixed"]},
        gt=0,
        lt=1,
    )
    lambda_r: float = option(
        1.0,
        "Weight of the preference",
        "Weight of the preference loss.",
        applies_when=WITH_PAIRS,
        advanced=True,
        ge=0,
    )
    lambda_g: float = option(
        0.01,
        "Weight of the gate's entropy",
        "How strongly the gate is kept away from 0 and 1.",
        typical="0 to 0.1",
        advanced=True,
        ge=0,
    )
    beta_r: float = option(
        1.0,
        "Preference beta",
        "Steepness of the preference loss in the difference of the answers' log-probabilities.",
        typical="0.1 to 1; less for long answers",
        applies_when=WITH_PAIRS,
        advanced=True,
        gt=0,
    )
    rm_bias: bool = option(
        False,
        "Bias of the reward head",
        "Whether the reward head has a bias.",
        advanced=True,
        resume="refuse",
    )
    rm_dropout: float = option(
        0.1,
        "Dropout of the reward head",
        "Dropout of the hidden states before it.",
        advanced=True,
        ge=0,
        lt=1,
    )
    gating_num_heads: int = option(
        8,
        "Heads of the gate",
        "Attention heads of the gate; divides the backbone's width.",
        advanced=True,
        ge=1,
        resume="refuse",
    )
    gating_size: int | None = option(
        None,
        "Width of the gate",
        "Width of the gate's last layer; left out, a quarter of the backbone's.",
        advanced=True,
        ge=1,
        le=LARGEST,
        resume="refuse",
    )
    gating_dropout: float = option(
        0.1,
        "Dropout of the gate",
        "Dropout of the gate's attention and last layer.",
        advanced=True,
        ge=0,
        lt=1,
    )
    gating_layer_norm: bool = option(
        True,
        "Norm of the gate",
        "Layer norm of the hidden states before the gate.",
        advanced=True,
        resume="refuse",
    )
    load_in: Literal["none", "8bit", "4bit"] = option(
        "none",
        "Quantised loading",
        "Precision of the frozen backbone.",
        choices={
            "none": "as it was saved",
            "8bit": "half the memory of 16 bit",
            "4bit": "a quarter (nf4, double quantisation)",
        },
        resume="refuse",
    )
    chat_template: Literal["auto", "chatml"] = option(
        "auto",
        "Chat template",
        "How a conversation becomes text.",
        choices={
            "auto": "the model's own, ChatML where it has none",
            "chatml": "ChatML whatever the model has",
        },
        advanced=True,
    )
    share_prompts: bool = option(
        True,
        "Share prompts",
        "The backbone reads a prompt once for both answers, where that is less work.",
        applies_when=WITH_PAIRS,
        advanced=True,
    )
    max_length: int = option(
        2048,
        "Max sequence length",
        "Prompt and answer together; longer answers are truncated.",
        unit="tokens",
        typical="512 to 4096",
        ge=2,
    )
    max_prompt_length: int = option(
        1024,
        "Max prompt length",
        "Of pairs: longer prompts are truncated at their start.",
        unit="tokens",
        ge=1,
    )
    epochs: float | None = epochs_option(3.0)
    optimizer: FirstOrder = first_order_option()
    learning_rate: float = option(
        5e-5,
        "Learning rate",
        "Size of the updates at the peak of the schedule.",
        typical="1e-5 to 3e-4",
        gt=0,
        aliases=["lr"],
    )
    weight_decay: float = option(
        0.01,
        "Weight decay",
        "Decay of the weights towards zero; not applied to norms, biases and embeddings.",
        advanced=True,
        ge=0,
    )
    warmup_steps: int = warmup_option(100)
    batch_size: int = option(
        8, "Batch size", "Rows (pairs or answers) per device and micro-step.", unit="rows", ge=1
    )
    gradient_accumulation_steps: int = option(
        8,
        "Gradient accumulation steps",
        "Micro-steps per optimizer update; effective batch = batch size x accumulation x devices.",
        ge=1,
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> DualHeadConfig:
        if "max_prompt_length" not in self.model_fields_set:
            self.__dict__["max_prompt_length"] = min(self.max_prompt_length, max(1, self.max_length // 2))
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"`max_prompt_length` {self.max_prompt_length} leaves no room for an answer within"
                f" `max_length` {self.max_length}: use {self.max_length // 2}"
            )
        if self.gradient_checkpointing:
            raise ValueError(
                "`gradient_checkpointing` saves nothing here: no gradient goes through the backbone; leave"
                " it out"
            )
        return self

    @property
    def quantised(self) -> str:
        """Precision of the frozen backbone: "none", "8bit" or "4bit"."""
        return self.load_in

    @property
    def loss_on(self) -> str:
        """Of a conversation the assistant's tokens are learned."""
        return "assistant"
