"""Options of training a few added weights: LoRA and QLoRA."""

from __future__ import annotations

from typing import Any, Literal

from llmlab.config.options import option
from llmlab.config.training import TrainingConfig

WITH_ADAPTER = {"adapter": ["lora", "qlora"]}

COMPARED: dict[str, Any] = {
    "title": "LoRA dropout",
    "description": (
        "Dropout before the added matrices, the only dropout there is: it makes the log-probabilities that"
        " this method compares differ where the weights do not."
    ),
    "applies_when": WITH_ADAPTER,
    "advanced": True,
    "ge": 0,
    "lt": 1,
}  # of `lora_dropout` in methods that compare a policy with a reference, or with itself a moment ago


class AdapterOptions(TrainingConfig):
    """Training a few added weights instead of all of them (Hu et al. 2021; Dettmers et al. 2023)."""

    adapter: Literal["none", "lora", "qlora"] = option(
        "none",
        "Adapter",
        "Which weights train.",
        choices={
            "none": "all of them: the most capable, and the most memory",
            "lora": "small added matrices: a tenth of the memory for optimizer and gradients",
            "qlora": "lora on a 4-bit model: fits where nothing else does",
        },
        resume="refuse",
    )
    lora_r: int = option(
        16,
        "LoRA rank",
        "Rank of the added matrices.",
        typical="8 to 64",
        applies_when=WITH_ADAPTER,
        ge=1,
        resume="refuse",
    )
    lora_alpha: int = option(
        32,
        "LoRA alpha",
        "Scale of the added matrices; their effect is alpha / rank.",
        typical="1 to 2 x rank",
        applies_when=WITH_ADAPTER,
        advanced=True,
        ge=1,
        resume="refuse",
    )
    lora_dropout: float = option(
        0.05,
        "LoRA dropout",
        "Dropout before the added matrices.",
        applies_when=WITH_ADAPTER,
        advanced=True,
        ge=0,
        lt=1,
    )
    lora_targets: Literal["all-linear", "attention", "ffn"] | list[str] = option(
        "all-linear",
        "LoRA targets",
        "Which matrices get an adapter: a group, or a list of module names.",
        choices={
            "all-linear": "every matrix of every block: the closest to full training",
            "attention": "queries, keys, values and outputs: the fewest weights",
            "ffn": "the feed-forward matrices",
        },
        applies_when=WITH_ADAPTER,
        advanced=True,
        resume="refuse",
    )
    load_in: Literal["none", "8bit", "4bit"] = option(
        "none",
        "Quantised loading",
        "Precision of the frozen weights under an adapter.",
        choices={
            "none": "as they were saved",
            "8bit": "half the memory of 16 bit",
            "4bit": "a quarter (nf4, double quantisation); what qlora means",
        },
        applies_when=WITH_ADAPTER,
        advanced=True,
        resume="refuse",
    )

    @property
    def adapter_dropout(self) -> float:
        """Dropout of the adapter that is trained; 0 without `adapter`,
        even if the checkpoint itself is an adapter.
        """
        return self.lora_dropout if self.frozen_base else 0.0

    @property
    def frozen_base(self) -> bool:
        """Whether the loaded weights stay as they are."""
        return self.adapter != "none"

    @property
    def quantised(self) -> str:
        """Precision of the frozen weights in effect: "none", "8bit" or "4bit"."""
        return "4bit" if self.adapter == "qlora" and self.load_in == "none" else self.load_in
