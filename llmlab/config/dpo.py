"""`kind: "dpo"`: direct preference optimisation (Rafailov et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from llmlab.config.adapters import COMPARED, AdapterOptions
from llmlab.config.batches import DividedBatches
from llmlab.config.options import LARGEST, option
from llmlab.config.schedule import warmup_option
from llmlab.config.sft import POLICY
from llmlab.config.sources import SourceConfig
from llmlab.config.training import NEWEST, Bounds, LengthOptions
from llmlab.config.watching import Better
from llmlab.titles import TITLES


class DPOConfig(AdapterOptions, LengthOptions, DividedBatches):
    """Prefer the chosen answer over the rejected one, without a reward model."""

    KIND: ClassVar[str] = "dpo"
    TITLE: ClassVar[str] = TITLES["dpo"]
    METHOD: ClassVar[str] = "dpo"
    USUAL_RATES: ClassVar[tuple[Bounds, Bounds]] = ((1e-8, 2e-5), (1e-6, 2e-4))
    METRICS: ClassVar[Mapping[str, Better]] = {"eval_loss": "lower", "eval_rewards/accuracies": "higher"}
    kind: Literal["dpo"] = "dpo"

    policy_checkpoint: str = option(NEWEST, **POLICY, min_length=1, resume="refuse")
    datasets: list[SourceConfig] = option(
        lambda: [SourceConfig(name="Anthropic/hh-rlhf")],
        "Datasets",
        "Where the preference pairs come from.",
        min_length=1,
    )
    beta: float = option(
        0.2,
        "Beta",
        "How strongly the policy is kept close to the reference.",
        typical="0.1 to 0.5; 2 to 10 for length-normalised losses",
        gt=0,
        aliases=["clip_range"],
    )
    loss_type: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sigmoid_norm",
    ] = option(
        "sigmoid",
        "Loss",
        "Which preference loss.",
        choices={
            "sigmoid": "DPO as published",
            "hinge": "no gain beyond a margin of 1 (SLiC)",
            "ipo": "a squared loss that does not overfit certain pairs",
            "exo_pair": "reverse KL to the preference distribution",
            "nca_pair": "keeps the probability of chosen answers from falling",
            "robust": "for pairs of which some have swapped labels",
            "bco_pair": "a binary classifier's view of each answer",
            "sppo_hard": "self-play preference with hard labels",
            "aot": "distributional preference, paired",
            "aot_unpaired": "distributional preference, unpaired",
            "apo_zero": "raises chosen and lowers rejected answers: where the data is better than the model",
            "apo_down": "lowers both, rejected ones more: where the model is better than the data",
            "discopop": "a loss found by search",
            "sigmoid_norm": "DPO on log-probabilities per token, as OLMo 3 (needs a larger beta)",
        },
        advanced=True,
    )
    label_smoothing: float = option(
        0.001,
        "Label smoothing",
        "Expected share of pairs with swapped labels.",
        typical="0.001 for exo_pair, 0.1 for robust",
        applies_when={"loss_type": ["exo_pair", "robust", "aot"]},
        advanced=True,
        gt=0,
        lt=0.5,
    )
    reference_checkpoint: str | None = option(
        None,
        "Reference",
        "The frozen model to stay close to; left out, the policy before training.",
        advanced=True,
    )
    reference: Literal["sequential", "live"] = option(
        "sequential",
        "Reference passes",
        "When the reference's log-probabilities are computed.",
        choices={
            "sequential": "once before training; then only the policy is needed",
            "live": "in every step, beside the policy",
        },
        advanced=True,
    )
    cache_dir: str = option(
        "checkpoints/reference_cache",
        "Reference cache",
        "Where the reference's log-probabilities are kept, to be found again by the content of a pair.",
        applies_when={"reference": ["sequential"]},
        advanced=True,
        min_length=1,
    )
    reference_batch_size: int | None = option(
        None,
        "Reference batch size",
        "Pairs in one reference pass; left out, as many as fill a fixed number of tokens.",
        unit="pairs",
        applies_when={"reference": ["sequential"]},
        advanced=True,
        ge=1,
        le=LARGEST,
    )
    padding_free: bool = option(
        True,
        "Padding-free",
        "The answers of a batch share rows, attention kept within each: no padding is computed.",
        advanced=True,
    )
    group_by_length: bool = option(
        False,
        "Group by length",
        "Batch pairs of similar length: less padding, a slightly less random order.",
        advanced=True,
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
        ge=1,
    )
    learning_rate: float = option(
        1.4e-5,
        "Learning rate",
        "Size of the updates at the peak of the schedule.",
        typical="1e-7 to 5e-6 for all weights of a large model, 5e-6 to 1e-4 for a small one or an adapter",
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
    batch_size: int = option(128, "Batch size", "Pairs per device and optimizer update.", unit="pairs", ge=1)
    mini_batch_size: int = option(
        32, "Mini-batch size", "Pairs per device and micro-step; divides the batch size.", unit="pairs", ge=1
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> DPOConfig:
        if self.batch_size % self.mini_batch_size:
            divisors = [d for d in range(1, self.batch_size + 1) if self.batch_size % d == 0]
            near = min(divisors, key=lambda d: abs(d - self.mini_batch_size))
            raise ValueError(
                f"`mini_batch_size` {self.mini_batch_size} does not divide `batch_size` {self.batch_size}:"
                f" use {near}"
            )
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"`max_prompt_length` {self.max_prompt_length} leaves no room for an answer within"
                f" `max_length` {self.max_length}: use {self.max_length // 2}"
            )
        return self
