"""What training on one's own answers has in common: prompts, rewards, how answers are generated, batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from llmlab.config.adapters import COMPARED, AdapterOptions
from llmlab.config.batches import DividedBatches
from llmlab.config.hardware import Engine
from llmlab.config.options import option
from llmlab.config.rewards import RewardSource
from llmlab.config.schedule import warmup_option
from llmlab.config.sft import POLICY
from llmlab.config.sources import SourceConfig
from llmlab.config.training import NEWEST, FirstOrder, first_order_option
from llmlab.config.vllm import VLLMOptions
from llmlab.config.watching import Better


class RolloutConfig(VLLMOptions, AdapterOptions, DividedBatches):
    """Training on answers that the policy gives itself, and what they are rewarded for."""

    ENGINES: ClassVar[tuple[Engine, ...]] = ("ddp", "fsdp2")
    NO_TENSOR_PARALLEL: ClassVar[str] = "every process answers prompts of its own"
    METRICS: ClassVar[Mapping[str, Better]] = {"eval_reward": "higher"}

    policy_checkpoint: str = option(NEWEST, **POLICY, min_length=1, resume="refuse")
    datasets: list[SourceConfig] = option(
        lambda: [SourceConfig(name="Anthropic/hh-rlhf")],
        "Datasets",
        "Where the prompts come from, with reference answers where a reward needs them.",
        min_length=1,
    )
    reward_model: list[RewardSource] = option(
        lambda: [RewardSource(name="OpenAssistant/reward-model-deberta-v3-large-v2")],
        "Rewards",
        "What answers are rewarded for; several add up with their weights.",
        min_length=1,
        aliases=["reward_model_name"],
    )
    max_new_tokens: int = option(128, "Max new tokens", "Longer answers are truncated.", unit="tokens", ge=1)
    top_k: int = option(0, "Top k", "Sample among the k likeliest tokens; 0 for all.", advanced=True, ge=0)
    top_p: float = option(
        1.0,
        "Top p",
        "Sample among the likeliest tokens of this total probability.",
        advanced=True,
        gt=0,
        le=1,
    )
    max_prompt_length: int = option(
        512, "Max prompt length", "Longer prompts are left out and counted.", unit="tokens", ge=1
    )
    lora_dropout: float = option(0.0, **COMPARED)
    optimizer: FirstOrder = first_order_option()
    learning_rate: float = option(
        1.4e-5,
        "Learning rate",
        "Size of the updates at the peak of the schedule.",
        typical="1e-6 to 1e-5 for all weights of a large model, 1e-5 to 1e-3 for a small one or an adapter",
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
    batch_size: int = option(
        128,
        "Batch size",
        "Answers per device and update; a multiple of the group size.",
        unit="answers",
        ge=2,
    )
    mini_batch_size: int = option(
        32,
        "Mini-batch size",
        "Answers per device and micro-step; divides the batch size.",
        unit="answers",
        ge=1,
    )

    @model_validator(mode="before")
    @classmethod
    def _one_reward(cls, data: Any) -> Any:
        for name in ("reward_model", "reward_model_name"):
            if isinstance(data, dict) and isinstance(data.get(name), (str, dict)):
                data = {**data, name: [data[name]]}
        return data

    @model_validator(mode="after")
    def _check_mini_batch(self) -> RolloutConfig:
        if self.batch_size % self.mini_batch_size:
            divisors = [d for d in range(1, self.batch_size + 1) if self.batch_size % d == 0]
            near = min(divisors, key=lambda d: abs(d - self.mini_batch_size))
            raise ValueError(
                f"`mini_batch_size` {self.mini_batch_size} does not divide `batch_size` {self.batch_size}:"
                f" use {near}"
            )
        return self
