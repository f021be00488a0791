"""`kind: "ppo"`: proximal policy optimisation with a value function (Schulman et al. 2017; Ouyang et al.
2022).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from llmlab.config.options import option
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.training import Bounds
from llmlab.titles import TITLES

CRITIC = {"critic": [True]}


class PPOConfig(RolloutConfig):
    """Reward what a model says, compared with what a critic expected at every token."""

    KIND: ClassVar[str] = "ppo"
    TITLE: ClassVar[str] = TITLES["ppo"]
    METHOD: ClassVar[str] = "ppo"
    USUAL_RATES: ClassVar[tuple[Bounds, Bounds]] = ((1e-7, 2e-5), (1e-6, 2e-4))
    kind: Literal["ppo"] = "ppo"

    temperature: float = option(
        1.0, "Temperature", "Sampling temperature; lower gives more similar answers.", advanced=True, gt=0
    )
    ppo_epochs: int = option(4, "PPO epochs", "Passes over each batch of answers.", typical="1 to 4", ge=1)
    clip_range: float = option(
        0.2, "Clip range", "Clip range of the probability ratio.", advanced=True, gt=0, lt=1
    )
    kl_coef: float = option(
        0.05,
        "KL weight",
        "Weight of the KL penalty per token; 0 loads no reference.",
        typical="0.01 to 0.1",
        ge=0,
    )
    critic: bool = option(
        True,
        "Critic",
        "Train a value head on the policy; without it, advantages are the whitened returns.",
        advanced=True,
        resume="refuse",
    )
    vf_coef: float = option(
        0.1, "Value weight", "Weight of the value loss.", applies_when=CRITIC, advanced=True, gt=0
    )
    value_clip_range: float = option(
        0.2,
        "Value clip range",
        "Clip range of the value function.",
        applies_when=CRITIC,
        advanced=True,
        gt=0,
    )
    value_learning_rate: float = option(
        1e-3,
        "Value head learning rate",
        "Learning rate of the value head, which is initialised to zero.",
        applies_when=CRITIC,
        advanced=True,
        gt=0,
    )
    gamma: float = option(1.0, "Gamma", "Discount factor per token.", advanced=True, gt=0, le=1)
    gae_lambda: float = option(
        0.95,
        "GAE lambda",
        "GAE lambda: 1 relies on the returns, 0 on the critic.",
        applies_when=CRITIC,
        advanced=True,
        ge=0,
        le=1,
    )
    missing_end_penalty: float = option(
        0.0,
        "Missing-EOS penalty",
        "Subtracted from the reward of answers that are truncated.",
        advanced=True,
        ge=0,
    )

    @property
    def accumulation_steps(self) -> int:
        """Forward and backward passes per optimizer step: each mini-batch is an update."""
        return 1

    def steps_of_a_pass(self, rows: int, processes: int) -> int:
        """Returns the updates on answers to every prompt once; the last batch of prompts is filled up."""
        updates = self.batch_size // self.mini_batch_size * self.ppo_epochs
        return math.ceil(rows / (self.batch_size * processes)) * updates
