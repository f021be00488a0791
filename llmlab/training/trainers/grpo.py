"""TRL's GRPO trainer with the reference at the start and the same draws in any number of processes."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel
from trl.trainer import grpo_trainer as trl_trainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.utils import add_fused_lm_head

from llmlab.models.adapters import add_reference_adapter, set_dropout, without_adapter
from llmlab.models.transformer.modeling import real_positions
from llmlab.training import compat
from llmlab.training.engine.sharing import shard_frozen
from llmlab.training.held_out import answer_weights, deviations, squares
from llmlab.training.order import RepeatedOrder
from llmlab.training.rollouts import Seeds
from llmlab.training.sampling import (
    ANSWERS,
    HELD_OUT,
    ROW,
    SeededDraws,
    seeds_of_rows,
    spread_over_updates,
    with_row_numbers,
)
from llmlab.training.trainers.base import LabTrainerMixin
from llmlab.training.vllm import Answering

compat.check(compat.GRPO)

Drawn = tuple[list[list[int]], list[list[float | None]] | None]  # token ids, and their log-probabilities


class GRPOTrainer(LabTrainerMixin, trl_trainer.GRPOTrainer):
    """TRL's trainer whose reference is the policy as it was at the start, and that does the same in any
    number of processes.

    TRL would load the reference again by its name, which GGUF files do not allow; and each of its processes
    draws and shuffles answers by itself.

    Args:
        has_reference: whether the loss has a KL term to a reference.
        reference: the frozen model; None where `has_reference` is false, or where the policy is an
            adapter, of which a copy is kept.
        kl_weight: beta.
        adapter_dropout: dropout of the adapter; of the model itself there is none.
        vllm: how vLLM writes the answers; None where the policy does itself.
        **kwargs: of TRL's trainer.
    """

    args: GRPOConfig
    _buffered_inputs: list[dict[str, Any]] | None  # type: ignore[assignment]  # TRL annotates its first value

    def __init__(
        self,
        *args: Any,
        has_reference: bool = False,
        reference: PreTrainedModel | None = None,
        kl_weight: float = 0.0,
        adapter_dropout: float = 0.0,
        vllm: Answering | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.vllm = vllm.engine(self.model, self.accelerator, self.processing_class) if vllm else None
        self.use_vllm = vllm is not None
        self._seeds: Seeds = []
        self.beta = self.args.beta = kl_weight
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = shard_frozen(reference, self.accelerator)
        elif has_reference:  # only now: TRL rounds an adapter on quantised weights to bf16
            add_reference_adapter(self.model)
        set_dropout(self.model, adapter_dropout)
        for model in (self.model, reference):
            if model is not None:
                without_adapter(model).register_forward_pre_hook(_with_real_positions, with_kwargs=True)
        self.eval_dataset = with_row_numbers(self.eval_dataset)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the rollout of a batch of prompts, its answers drawn by the seed,
        the step and the number of the row.
        """
        if self.model.training:
            first = self.accelerator.process_index * len(inputs)
            seeds = seeds_of_rows(
                self.args.seed, ANSWERS, self.state.global_step, range(first, first + len(inputs))
            )
        else:
            seeds = seeds_of_rows(self.args.seed, HELD_OUT, 0, [row[ROW] for row in inputs])
            inputs = [{name: value for name, value in row.items() if name != ROW} for row in inputs]
        self._seeds = seeds
        if self.vllm is None:
            draws = SeededDraws(seeds, cast(int, self.max_completion_length))
            self.generation_config = GenerationConfig(
                **self.generation_kwargs, disable_compile=True, watermarking_config=draws
            )
        return cast(dict[str, Any], super()._generate_and_score_completions(inputs))

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Drawn:
        """Returns the token ids of the answers, and their log-probabilities where vLLM wrote them."""
        if self.vllm is None:
            own: Drawn = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            return own
        return self.vllm.answers(prompt_ids, self._seeds, self.state.global_step)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Returns the answers of the next micro-step;
        made anew when those there are were used often enough.
        """
        if not self.model.training:
            return cast(dict[str, Any], super()._prepare_inputs(generation_batch))
        parts = cast(int, self.args.steps_per_generation)
        if self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            rollout = self._generate_and_score_completions(generation_batch)
            rows, first = len(generation_batch), self.accelerator.process_index * len(generation_batch)
            self._buffered_inputs = [
                {
                    name: value[part] if torch.is_tensor(value) and value.dim() else value
                    for name, value in rollout.items()
                }
                for part in spread_over_updates(rows, parts, self.args.seed, self.state.global_step, first)
            ]
        return self._buffered_inputs[self._step % parts]

    @property
    def rollout_is_spent(self) -> bool:
        """Whether the next update begins with new answers."""
        updates = cast(int, self.args.steps_per_generation) * self.num_iterations
        return bool(self._step % updates == 0)

    def _make_order(self, library: Any) -> RepeatedOrder:
        return RepeatedOrder.of(library)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """Returns the rewards, (answers, functions), and notes how the groups spread."""
        rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training:
            total = (rewards * self.reward_weights.to(rewards.device)).sum(dim=1)
            groups = total.view(-1, cast(int, self.num_generations))
            for name, value in group_figures(groups).items():
                self._metrics["train"][name].append(value)
        return rewards

    def held_out_batch(self, inputs: Any, loss: torch.Tensor) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the figures of a batch of answers, and of how many answers or tokens they are means."""
        rows, figures = len(inputs["completion_ids"]), compat.pop_eval_metrics(self)
        together = rows * self.accelerator.num_processes  # answers that TRL's deviations are over
        return {"loss": loss.item(), **squares(figures, together)}, answer_weights(rows, figures)

    def held_out_figures(self, totals: dict[str, float]) -> dict[str, float]:
        """Returns the figures over all answers."""
        return deviations(totals)


def _with_real_positions(model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Tells a model, as `generate` does, where tokens behind padding stand; TRL does not,
    and many models count the padding.
    """
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return args, kwargs
    whole = kwargs.get("position_ids") is kwargs.get("past_key_values") is None
    if whole and "position_ids" in inspect.signature(type(model).forward).parameters:
        kwargs = {**kwargs, "position_ids": real_positions(mask)}
    return args, kwargs


def group_figures(rewards: torch.Tensor) -> dict[str, float]:
    """Returns how groups of rewards, (groups, size), spread: within them, their best,
    and those that teach nothing.
    """
    return {
        "group/spread": rewards.std(dim=1).mean().item(),
        "group/best": rewards.max(dim=1).values.mean().item(),
        "group/no_signal": (rewards.max(dim=1).values == rewards.min(dim=1).values).float().mean().item(),
    }
