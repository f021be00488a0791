"""Group-relative policy optimisation through TRL (Shao et al. 2024, eq. 3).

For each prompt `group_size` answers; advantage = (reward - group mean) / (group std + 1e-4); the clipped
ratio loss of PPO on every token of an answer, averaged over all tokens of the batch; optionally beta times
the KL estimate to the reference, which is multiplied by the ratio as well: so its gradient is that of the KL
itself (DeepSeek-V3.2, 2025).
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import partial
from typing import Any

import torch
import trl
from transformers import GenerationConfig, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from llmlab.config import GRPOConfig
from llmlab.data.prepare import prompts_data
from llmlab.data.tokenizer import ensure_chat_template
from llmlab.errors import LabError
from llmlab.models.adapters import add_reference_adapter, frozen_copy, set_dropout, without_adapter
from llmlab.models.load import stop_at_turn_ends
from llmlab.models.policy import load_policy
from llmlab.models.resolve import resolve_model
from llmlab.models.transformer.modeling import real_positions
from llmlab.training import compat
from llmlab.training.engine.distributed import processes
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Reporter
from llmlab.training.held_out import answer_weights, deviations, squares
from llmlab.training.order import RepeatedOrder
from llmlab.training.rewards import refuse_untrusted, reward_function
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

compat.check(compat.GRPO)


class GRPOTrainer(LabTrainerMixin, trl.GRPOTrainer):
    """TRL's trainer whose reference is the policy as it was at the start, and that does the same in any
    number of processes.

    TRL would load the reference again by its name, which GGUF files do not allow; and each of its processes
    draws and shuffles answers by itself. What vLLM draws depends on how it batches.

    Args:
        held: whether the policy is held to a reference.
        reference: the frozen model; None where `held` is false, or where the policy is an adapter, of which a
            copy is kept.
        kl_weight: beta.
        adapter_dropout: dropout of the adapter; of the model itself there is none.
        **kwargs: of TRL's trainer.
    """

    def __init__(
        self,
        *args: Any,
        held: bool = False,
        reference: PreTrainedModel | None = None,
        kl_weight: float = 0.0,
        adapter_dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.beta = self.args.beta = kl_weight
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        elif held:  # only now: TRL rounds an adapter on quantised weights to bf16
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
        if not self.use_vllm:
            draws = SeededDraws(seeds, self.max_completion_length)
            self.generation_config = GenerationConfig(
                **self.generation_kwargs, disable_compile=True, watermarking_config=draws
            )
        return super()._generate_and_score_completions(inputs)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Returns the answers of the next micro-step;
        made anew when those there are were used often enough.
        """
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        parts = self.args.steps_per_generation
        if self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            made = self._generate_and_score_completions(generation_batch)
            rows, first = len(generation_batch), self.accelerator.process_index * len(generation_batch)
            self._buffered_inputs = [
                {
                    name: value[part] if torch.is_tensor(value) and value.dim() else value
                    for name, value in made.items()
                }
                for part in spread_over_updates(rows, parts, self.args.seed, self.state.global_step, first)
            ]
        return self._buffered_inputs[self._step % parts]

    @property
    def rollout_is_spent(self) -> bool:
        """Whether the next update begins with new answers."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0

    def _make_order(self, library: Any) -> RepeatedOrder:
        return RepeatedOrder.of(library)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """Returns the rewards, (answers, functions), and notes how the groups spread."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training:
            total = (
                (rewards * self.reward_weights.to(rewards.device)).sum(dim=1).view(-1, self.num_generations)
            )
            for name, value in group_figures(total).items():
                self._metrics["train"][name].append(value)
        return rewards

    def held_out_batch(self, inputs: Any, loss: torch.Tensor) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the figures of a batch of answers, and of how many answers or tokens they are means."""
        rows, figures = len(inputs["completion_ids"]), compat.pop_eval_metrics(self)
        together = rows * self.accelerator.num_processes  # answers that the library's deviations are over
        return {"loss": loss.item(), **squares(figures, together)}, answer_weights(rows, figures)

    def held_out_figures(self, totals: dict[str, float]) -> dict[str, float]:
        """Returns the figures over all answers."""
        return deviations(totals)


def _with_real_positions(model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Tells a model, as `generate` does, where tokens behind padding stand; TRL does not,
    and many models count the padding.
    """
    mask = kwargs.get("attention_mask")
    whole = (
        torch.is_tensor(mask)
        and mask.dim() == 2
        and kwargs.get("position_ids") is kwargs.get("past_key_values") is None
    )
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


def prepare(config: GRPOConfig, device: str, precision: str, reporter: Reporter) -> Job:
    """Returns the job of a GRPO run.

    Raises:
        LabError: when policy, rewards or prompts do not load, or a reward of the person's own was not agreed
            to.
    """
    refuse_untrusted(config.reward_model)
    if config.use_vllm and importlib.util.find_spec("vllm") is None:
        raise LabError(
            "`use_vllm`: the package vllm is not installed", remedy="pip install vllm, or leave it out"
        )
    rewards = [reward_function(source, device) for source in config.reward_model]
    policy = resolve_model(config.policy_checkpoint)
    model, tokenizer = load_policy(policy, config, device, precision)
    tokenizer.padding_side = "left"
    ensure_chat_template(tokenizer)
    ends = stop_at_turn_ends(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    data = prompts_data(config, tokenizer)
    held = config.beta > 0
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=data,
        arguments=partial(
            trl.GRPOConfig,
            beta=0.0,  # the reference is handed to the trainer, which then sets it
            num_generations=config.group_size,
            num_generations_eval=1,
            generation_batch_size=config.batch_size * processes(),  # the library counts all processes
            max_completion_length=config.max_new_tokens,
            temperature=config.grpo_temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            epsilon=config.clip_range,
            num_iterations=config.iterations,
            reward_weights=[source.weight for source in config.reward_model],
            use_vllm=config.use_vllm,
            generation_kwargs={"eos_token_id": ends},
        ),
        trainer=partial(
            GRPOTrainer,
            reward_funcs=rewards,
            held=held,
            reference=frozen_copy(model) if held else None,
            kl_weight=config.beta,
            adapter_dropout=config.adapter_dropout,
        ),
        parent=policy.where,
        best_by="eval_reward",
    )
