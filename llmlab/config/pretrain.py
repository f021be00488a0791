"""`kind: "pretrain"`: base training, next-token prediction on packed documents."""

from __future__ import annotations

from typing import ClassVar, Literal

from llmlab.config.model import ModelConfig
from llmlab.config.options import option
from llmlab.config.sources import SourceConfig
from llmlab.config.training import TrainingConfig


class PretrainConfig(TrainingConfig):
    """Train a transformer from scratch, or go on training one."""

    KIND: ClassVar[str] = "pretrain"
    TITLE: ClassVar[str] = "Base training"
    METHOD: ClassVar[str] = "base"
    kind: Literal["pretrain"] = "pretrain"

    model: ModelConfig | str = option("model_configs/model.json", "Model", "A model config: a file, or the config itself.")
    datasets: list[SourceConfig] = option(
        lambda: [SourceConfig(name="HuggingFaceFW/fineweb-edu", subset="sample-10BT", streaming=True)],
        "Datasets",
        "Where the text comes from.",
        min_length=1,
    )
    batch_size: int = option(1, "Batch size", "Sequences per device and micro-step.", unit="sequences", ge=1)
    gradient_accumulation_steps: int = option(
        64,
        "Accumulation",
        "Micro-steps per optimizer update; effective batch = batch size x accumulation x devices.",
        ge=1,
    )
    init_from: str | None = option(
        None, "Continue from", "A checkpoint of the same architecture whose weights to start from.", advanced=True
    )
