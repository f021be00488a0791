"""`kind: "pretrain"`: base training, next-token prediction on packed documents; from scratch, or of a model
that is there.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from llmlab.config.adapters import AdapterOptions
from llmlab.config.batches import AccumulatedBatches
from llmlab.config.model import ModelConfig
from llmlab.config.options import GIVEN, option
from llmlab.config.sources import SourceConfig
from llmlab.config.training import Bounds, ModelSort, TrainingConfig
from llmlab.titles import TITLES

CONTINUED = {"init_from": GIVEN}
DEFAULT_MODEL = "model_configs/model.json"
LONGEST_ROW = 4096  # tokens of a row where nothing says how long, at most
# of training that goes on: below that of a start from scratch, so that what the model knows stays
CONTINUED_RATE, ADAPTER_RATE = 5e-5, 2e-4


class StartOptions(TrainingConfig):
    """What base training begins with; asked for before what depends on it."""

    init_from: str | None = option(
        None,
        "Continue from",
        "A model to train further, of any causal architecture: a run of the lab, a Hugging Face folder, a hub"
        " id or a GGUF file. Architecture, tokenizer and context length are its own. Left out, a new model is"
        " trained, the one of `model`.",
        resume="refuse",
        min_length=1,
    )


class PretrainConfig(AdapterOptions, StartOptions, AccumulatedBatches):
    """Train a transformer from scratch, or go on training a model."""

    KIND: ClassVar[str] = "pretrain"
    TITLE: ClassVar[str] = TITLES["pretrain"]
    METHOD: ClassVar[str] = "base"
    STARTS_FROM_MODELS: ClassVar[tuple[ModelSort, ...]] = ("base", "policy")
    MAKES: ClassVar[ModelSort] = "base"
    USUAL_RATES: ClassVar[tuple[Bounds, Bounds]] = ((5e-5, 5e-3), (5e-5, 2e-3))
    STARTS_FROM: ClassVar[str] = "init_from"
    kind: Literal["pretrain"] = "pretrain"

    adapter: Literal["none", "lora", "qlora"] = option(
        "none",
        "Adapter",
        "Which weights train.",
        choices={
            "none": "all of them: learns the most from a text, and forgets the most",
            "lora": "small added matrices: a tenth of the memory for optimizer and gradients",
            "qlora": "lora on a 4-bit model: fits where nothing else does",
        },
        applies_when=CONTINUED,
        resume="refuse",
    )
    model: ModelConfig | str | None = option(
        None,
        "Model",
        f"A model config: a file, or the config itself. Left out, {DEFAULT_MODEL}.",
        applies_when={"init_from": [None]},
        resume="refuse",
    )
    datasets: list[SourceConfig] = option(
        lambda: [SourceConfig(name="HuggingFaceFW/fineweb-edu", subset="sample-10BT", streaming=True)],
        "Datasets",
        "Where the text comes from.",
        min_length=1,
    )
    max_length: int | None = option(
        None,
        "Row length",
        f"Tokens of a row. Left out, the context length of the model, at most {LONGEST_ROW:,}.",
        unit="tokens",
        typical="512 to 8192",
        applies_when=CONTINUED,
        aliases=["max_seq_len"],
        ge=8,
        le=10_000_000,
        resume_note="rows are cut anew and counted on by number: some text comes again, some not at all",
    )
    added_tokens: list[str] = option(
        list,
        "Added tokens",
        "Words of your field that become one token each; their embeddings begin as the mean of the others.",
        applies_when=CONTINUED,
        advanced=True,
        resume="refuse",
    )
    resize_vocabulary: int | None = option(
        None,
        "Resize vocabulary",
        "Rows of the embedding and of the output head; new ones begin as the mean of the others. Left out,"
        " they grow as far as `added_tokens` need.",
        typical="a multiple of 64",
        applies_when=CONTINUED,
        advanced=True,
        ge=1,
        le=10_000_000,
        resume="refuse",
    )
    packing: Literal["end_to_end", "best_fit"] = option(
        "end_to_end",
        "Packing",
        "How documents fill rows of one length.",
        choices={
            "end_to_end": "one after the other: no padding, a document may go on in the next row",
            "best_fit": "whole documents wherever they fit: fewer are cut, at most about 1 % is padding",
        },
        advanced=True,
    )
    learning_rate: float = option(
        3e-4,
        "Learning rate",
        "Size of the updates at the peak of the schedule. Left out with `init_from`,"
        f" {CONTINUED_RATE:g}; with an adapter, {ADAPTER_RATE:g}.",
        typical="3e-4 to 3e-3, with `init_from` 1e-5 to 2e-4",
        gt=0,
        aliases=["lr"],
        resume_note="the schedule continues with it",
    )
    batch_size: int = option(1, "Batch size", "Sequences per device and micro-step.", unit="sequences", ge=1)
    gradient_accumulation_steps: int = option(
        64,
        "Gradient accumulation steps",
        "Micro-steps per optimizer update; effective batch = batch size x accumulation x devices.",
        ge=1,
    )

    def inapplicable(self, name: str) -> str:
        """Returns the unmet condition of an option; a `model` beside `init_from` is not refused here: whether
        both are of one architecture is seen when the model is there.
        """
        return "" if name == "model" and self.model is not None else super().inapplicable(name)

    @model_validator(mode="after")
    def _start(self) -> PretrainConfig:
        """Fills in what follows from where training begins."""
        if self.init_from is None:
            if self.model is None:
                self.__dict__["model"] = DEFAULT_MODEL
        elif self.model is None and "learning_rate" not in self.model_fields_set:
            self.__dict__["learning_rate"] = ADAPTER_RATE if self.frozen_base else CONTINUED_RATE
        return self

    @model_validator(mode="after")
    def _check_added_tokens(self) -> PretrainConfig:
        words = self.added_tokens
        if any(not word.strip() for word in words):
            raise ValueError("`added_tokens` holds an empty word")
        if len(set(words)) < len(words):
            twice = next(word for place, word in enumerate(words) if word in words[:place])
            raise ValueError(f"`added_tokens` holds {twice!r} twice")
        if self.frozen_base and (words or self.resize_vocabulary is not None):
            name = "added_tokens" if words else "resize_vocabulary"
            raise ValueError(
                f'`{name}` needs embeddings that learn, and `adapter` "{self.adapter}" leaves them as they'
                ' are: set `adapter` to "none"'
            )
        return self

    @property
    def usual_rates(self) -> Bounds:
        """The learning rates that published recipes lie within; lower ones where training goes on."""
        if self.init_from is None or self.frozen_base:
            return super().usual_rates
        return 1e-6, 5e-4

    def row_length(self, context: int | None) -> int:
        """Returns the tokens of a row, of a model that is trained further.

        Args:
            context: positions that it was made for; None where it does not say.
        """
        return self.max_length or min(context or LONGEST_ROW, LONGEST_ROW)
