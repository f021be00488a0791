"""A policy and its critic as one module: one backbone, a head over the vocabulary and one for the value.

As one module both are wrapped, moved and averaged over processes together (PPO with a shared backbone:
Schulman et al. 2017, eq. 9).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

from llmlab.models.adapters import without_adapter
from llmlab.models.log_probs import read, score_tokens
from llmlab.models.typed import LanguageModel


def _rename_older(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
    """Reads checkpoints in which a buffer had another name."""
    if f"{prefix}widest" in state_dict:
        state_dict[f"{prefix}max_std"] = state_dict.pop(f"{prefix}widest")


class ValueHead(nn.Module):
    """V of a hidden state, (..., width) to (...): one linear map in units of the returns' running mean and
    spread.

    The units keep the value loss of the same size whatever the rewards are: critic and policy share a
    backbone, and without them the gradients of large returns drown the policy's. A change of units rescales
    the map, so that no value changes (PopArt, van Hasselt et al. 2016, eq. 9).

    Args:
        width: of the hidden states.
        rate: weight of the newest batch in the running moments.

    Attributes:
        max_std: the largest spread so far.
    """

    mean: Tensor
    square: Tensor
    max_std: Tensor
    batches: Tensor

    def __init__(self, width: int, rate: float = 0.1):
        super().__init__()
        self.map = nn.Linear(width, 1)
        nn.init.zeros_(self.map.weight)  # the critic begins by expecting the mean
        nn.init.zeros_(self.map.bias)
        self.rate = rate
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("square", torch.zeros(()))
        self.register_buffer("max_std", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))
        self.register_load_state_dict_pre_hook(_rename_older)

    @property
    def std(self) -> Tensor:
        """The returns' running standard deviation, never below 1e-2; 1 before the first batch."""
        if not self.batches:
            return torch.ones_like(self.mean)
        return (self.square - self.mean**2).clamp(min=0).sqrt().clamp(min=1e-2)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Returns the values in units of the spread, around the mean."""
        values: Tensor = self.map(hidden_states.to(self.map.weight.dtype))  # (..., 1)
        return values.squeeze(-1)

    def denormalize(self, values: Tensor) -> Tensor:
        """Returns rewards for what `forward` returned."""
        return self.mean + self.std * values

    def normalize(self, rewards: Tensor) -> Tensor:
        """Returns what `forward` would have returned for these rewards."""
        return (rewards - self.mean) / self.std

    @torch.no_grad()
    def update_stats(self, mean: Tensor, square: Tensor) -> None:
        """Takes the first two moments of a batch of returns in; the values of all states stay as they are."""
        first = not self.batches
        old_mean, old_std = self.mean.clone(), self.std.clone()
        rate = 1.0 if first else self.rate
        self.mean += rate * (mean - self.mean)
        self.square += rate * (square - self.square)
        self.batches += 1
        self.max_std.copy_(torch.maximum(self.max_std, self.std))
        if not first:
            self.map.weight *= old_std / self.std
            self.map.bias.copy_((old_std * self.map.bias + old_mean - self.mean) / self.std)


class AnswerTokens(NamedTuple):
    """What policy and critic say of the tokens of answers; all but the last (B, T), 0 at padding.

    Attributes:
        log_probs: log pi of each token.
        entropy: of the distribution that each token was drawn from, in nats.
        values: V before each token, in the value head's units.
        balance: the loss that balances a mixture's experts, a number, in training; None for other models.
    """

    log_probs: Tensor
    entropy: Tensor
    values: Tensor
    balance: Tensor | None


class PolicyWithValueHead(nn.Module):
    """The model that PPO trains.

    Args:
        policy: with an adapter or without.
        temperature: of the answers; log-probabilities are those of the distribution they were drawn from.
        critic: whether the value head learns.
    """

    _keys_to_ignore_on_save = None  # transformers' Trainer looks it up where weights are loaded

    def __init__(self, policy: LanguageModel, temperature: float, *, critic: bool = True):
        super().__init__()
        self.policy = policy
        self.temperature = temperature
        self.value_head = ValueHead(policy.config.get_text_config().hidden_size).requires_grad_(critic)

    @property
    def config(self) -> PreTrainedConfig:
        """The policy's."""
        return self.policy.config

    @property
    def generation_config(self) -> GenerationConfig:
        """The policy's."""
        return self.policy.generation_config

    @property
    def balance_weight(self) -> float:
        """Weight of the loss that balances a mixture's experts; 0 for other models."""
        config = self.policy.config.get_text_config()
        routed = hasattr(config, "output_router_logits")
        return float(getattr(config, "router_aux_loss_coef", 0.0)) if routed else 0.0

    def generate(self, **kwargs: Any) -> Any:
        """Lets the policy answer; asked here, since what divides a model watches the calls of the whole."""
        return self.policy.generate(**kwargs)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Lets the policy's layers be computed anew in the backward pass."""
        self.policy.activation_checkpointing_enable(**kwargs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, answer_length: int) -> AnswerTokens:
        """Reads prompts, padded on the left, with their answers, padded on the right.

        Args:
            input_ids: token ids, (B, P + T).
            attention_mask: 0 at padding, (B, P + T).
            answer_length: T.
        """
        model = without_adapter(self.policy)
        text_config = model.config.get_text_config()
        balanced = self.training and self.balance_weight > 0
        more = {"output_router_logits": True} if balanced else {}
        output = read(model, input_ids, attention_mask, **more)
        before = output.last_hidden_state[
            :, -answer_length - 1 : -1
        ]  # (B, T, D): one place before each token
        mask = attention_mask[:, -answer_length:]
        scores = score_tokens(
            model,
            before,
            input_ids[:, -answer_length:],
            mask,
            temperature=self.temperature,
            entropy=True,
        )
        with torch.autocast(before.device.type, enabled=False):  # the head is in fp32, and so are its values
            values = self.value_head(before) * mask
        balance = balancing_loss(output.router_logits, text_config, attention_mask) if balanced else None
        assert scores.entropy is not None
        return AnswerTokens(scores.log_probs, scores.entropy, values, balance)


def balancing_loss(router_logits: Any, config: PreTrainedConfig, attention_mask: Tensor) -> Tensor:
    """Returns the loss that spreads tokens over experts (Fedus et al. 2021, eq. 4-6), without its weight."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    experts = getattr(config, "num_experts", None) or config.num_local_experts
    loss = load_balancing_loss_func(router_logits, experts, config.num_experts_per_tok, attention_mask)
    assert isinstance(loss, Tensor)  # a number where there are no routers
    return loss
