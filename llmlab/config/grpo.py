"""`kind: "grpo"`: group-relative policy optimisation (Shao et al. 2024, DeepSeekMath)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import model_validator

from llmlab.config.options import option
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.training import Bounds
from llmlab.titles import TITLES


class GRPOConfig(RolloutConfig):
    """Reward what a model says, compared with what else it says to the same prompt; no value function."""

    KIND: ClassVar[str] = "grpo"
    TITLE: ClassVar[str] = TITLES["grpo"]
    METHOD: ClassVar[str] = "grpo"
    USUAL_RATES: ClassVar[tuple[Bounds, Bounds]] = ((1e-7, 2e-5), (1e-6, 2e-4))
    kind: Literal["grpo"] = "grpo"

    group_size: int = option(
        4, "Group size", "Answers to each prompt, compared with each other.", typical="4 to 16", ge=2
    )
    grpo_temperature: float = option(
        1.0,
        "Temperature",
        "Sampling temperature; lower gives more similar answers.",
        advanced=True,
        gt=0,
        aliases=["temperature"],
    )
    beta: float = option(
        0.1,
        "KL weight",
        "Weight of the KL penalty to the reference; 0 loads no reference.",
        typical="0 to 0.1",
        ge=0,
        aliases=["grpo_beta"],
    )
    clip_range: float = option(
        0.2, "Clip range", "Clip range of the probability ratio.", advanced=True, gt=0, lt=1
    )
    iterations: int = option(
        4,
        "Iterations",
        "Updates on each batch of answers.",
        typical="1 to 4",
        advanced=True,
        ge=1,
        aliases=["ppo_epochs"],
    )

    @model_validator(mode="after")
    def _check_groups(self) -> GRPOConfig:
        if self.batch_size % self.group_size:
            near = max(self.group_size, self.batch_size // self.group_size * self.group_size)
            raise ValueError(
                f"`batch_size` {self.batch_size} is not a multiple of `group_size` {self.group_size}:"
                f" use {near}"
            )
        return self

    def steps_of_a_pass(self, rows: int, processes: int) -> int:
        """Returns the updates on answers to every prompt once; the last batch of prompts is filled up."""
        prompts = self.batch_size * processes // self.group_size
        return math.ceil(rows / prompts) * self.iterations
