"""`kind: "sft"`: supervised fine-tuning on conversations or prompt-completion rows."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from llmlab.config.adapters import AdapterOptions
from llmlab.config.batches import AccumulatedBatches
from llmlab.config.options import option
from llmlab.config.schedule import steps_option, warmup_option
from llmlab.config.training import NEWEST, LengthOptions, ModelSort
from llmlab.titles import TITLES

POLICY: dict[str, Any] = dict(
    title="Policy checkpoint",
    description=(
        "What to train: a run of the lab, a Hugging Face folder, a hub id or a GGUF file; `newest` is the"
        " newest run that fits."
    ),
)


class SFTConfig(AdapterOptions, LengthOptions, AccumulatedBatches):
    """Teach a base model to answer."""

    KIND: ClassVar[str] = "sft"
    TITLE: ClassVar[str] = TITLES["sft"]
    METHOD: ClassVar[str] = "sft"
    STARTS_FROM_MODELS: ClassVar[tuple[ModelSort, ...]] = ("base", "policy")
    kind: Literal["sft"] = "sft"

    policy_checkpoint: str = option(NEWEST, **POLICY, min_length=1, resume="refuse")
    max_length: int = option(
        1024,
        "Max sequence length",
        "Longer rows are truncated at the end and counted.",
        unit="tokens",
        typical="512 to 8192",
        ge=2,
    )
    packing: bool = option(
        True,
        "Packing",
        "Several rows in one sequence, attention kept within each row: no padding is computed.",
    )
    loss_on: Literal["assistant", "all"] = option(
        "assistant",
        "Loss on",
        "Which tokens are learned.",
        choices={"assistant": "only what the assistant says", "all": "every token, the prompt included"},
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
    max_steps: int = steps_option(5000)
    learning_rate: float = option(
        5e-6,
        "Learning rate",
        "Size of the updates at the peak of the schedule.",
        typical="5e-6 to 5e-5, 1e-4 to 3e-4 with an adapter",
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
    batch_size: int = option(4, "Batch size", "Sequences per device and micro-step.", unit="sequences", ge=1)
    gradient_accumulation_steps: int = option(
        16,
        "Gradient accumulation steps",
        "Micro-steps per optimizer update; effective batch = batch size x accumulation x devices.",
        ge=1,
    )
