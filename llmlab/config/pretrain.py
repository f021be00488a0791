"""`kind: "pretrain"`: base training, next-token prediction on packed documents."""

from __future__ import annotations

from typing import ClassVar, Literal

from llmlab.config.batches import AccumulatedBatches
from llmlab.config.model import ModelConfig
from llmlab.config.options import option
from llmlab.config.sources import SourceConfig
from llmlab.config.training import Bounds, ModelSort


class PretrainConfig(AccumulatedBatches):
    """Train a transformer from scratch, or go on training one."""

    KIND: ClassVar[str] = "pretrain"
    TITLE: ClassVar[str] = "Base training"
    METHOD: ClassVar[str] = "base"
    STARTS_FROM_MODELS: ClassVar[tuple[ModelSort, ...]] = ()
    MAKES: ClassVar[ModelSort] = "base"
    USUAL_RATES: ClassVar[tuple[Bounds, Bounds]] = ((5e-5, 5e-3), (5e-5, 5e-3))
    STARTS_FROM: ClassVar[str] = "model"
    kind: Literal["pretrain"] = "pretrain"

    model: ModelConfig | str = option(
        "model_configs/model.json", "Model", "A model config: a file, or the config itself.", resume="refuse"
    )
    datasets: list[SourceConfig] = option(
        lambda: [SourceConfig(name="HuggingFaceFW/fineweb-edu", subset="sample-10BT", streaming=True)],
        "Datasets",
        "Where the text comes from.",
        min_length=1,
    )
    packing: Literal["end_to_end", "best_fit"] = option(
        "end_to_end",
        "Packing",
        "How documents fill rows of `max_seq_len` tokens.",
        choices={
            "end_to_end": "one after the other: no padding, a document may go on in the next row",
            "best_fit": "whole documents wherever they fit: fewer are cut, at most about 1 % is padding",
        },
        advanced=True,
    )
    batch_size: int = option(1, "Batch size", "Sequences per device and micro-step.", unit="sequences", ge=1)
    gradient_accumulation_steps: int = option(
        64,
        "Gradient accumulation steps",
        "Micro-steps per optimizer update; effective batch = batch size x accumulation x devices.",
        ge=1,
    )
    init_from: str | None = option(
        None,
        "Continue from",
        "A checkpoint of the same architecture whose weights to start from.",
        advanced=True,
        resume="refuse",
    )
