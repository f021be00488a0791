"""Proximal policy optimisation with a real critic (Schulman et al. 2017; for language models Ouyang et al.
2022).

Rollouts, rewards and the clipped policy loss are TRL's GRPO trainer's; here are the value head, the token
rewards, GAE and the value loss. One backbone serves policy and critic. The reference is the policy as it was
at the start: a frozen copy of the model, or of its adapter on the same backbone.

total = mean over the tokens of all processes of [ -min(ratio A, clip(ratio) A) + vf_coef * value loss ]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import trl
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmlab.config import PPOConfig
from llmlab.data.prepare import prompts_data
from llmlab.data.tokenizer import ensure_chat_template
from llmlab.models.load import load_policy, stop_at_turn_ends
from llmlab.runs.folder import find_model
from llmlab.training.advantages import (
    ValueHead,
    clipped_value_loss,
    discounted,
    explained_variance,
    gae,
    masked_moments,
    token_rewards,
    whiten,
)
from llmlab.training.engine.contents import restoring
from llmlab.training.engine.environment import processes
from llmlab.training.engine.run import Job
from llmlab.training.methods.grpo import GRPOTrainer, frozen_copy
from llmlab.training.rewards import agree, reward_function

VALUE_HEAD = "value_head.safetensors"
LEAST = 0.1  # of the widest spread of returns so far: advantages that spread less are not blown up to 1


class PPOTrainer(GRPOTrainer):
    """GRPO's rollout with advantages of one number a token, and a critic on the policy's own hidden states.

    Args:
        config: of the run.
        **kwargs: of the GRPO trainer.
    """

    def __init__(self, *args: Any, config: PPOConfig, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.config = config
        policy = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        width = policy.config.get_text_config().hidden_size
        self.value_head = ValueHead(width).to(self.accelerator.device)
        self._hidden: Tensor | None = None
        policy.base_model.register_forward_hook(self._note_hidden)
        if config.critic:
            like = {
                name: value for name, value in self.optimizer.param_groups[-1].items() if name != "params"
            }
            head = {
                "params": list(self.value_head.parameters()),
                "lr": config.value_learning_rate,
                "weight_decay": 0.0,
            }
            self.optimizer.add_param_group({**like, **head})

    def _note_hidden(self, module: Any, inputs: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state

    def _critic(self, length: int) -> Tensor:
        """Returns V, in the head's units, before each of the last `length` tokens of the latest pass, (B,
        length).
        """
        return self.value_head(self._hidden[:, -length - 1 : -1]).float()

    def _calculate_rewards(self, *args: Any) -> Tensor:
        rewards = super()._calculate_rewards(*args)
        self._scores = (rewards * self.reward_weights.to(rewards.device)).sum(dim=1)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Returns the rollout with whitened GAE advantages, returns and old values, (B, T) each."""
        training = self.model.training
        self.beta = (
            self.config.kl_coef if training else 0.0
        )  # asks the parent for the reference's log-probabilities
        out = super()._generate_and_score_completions(inputs)
        self.beta = 0.0  # the penalty is in the rewards, not in the loss
        if not training:
            return out
        mask = out["completion_mask"].float()
        ids = torch.cat([out["prompt_ids"], out["completion_ids"]], dim=1)
        attention = torch.cat([out["prompt_mask"], out["completion_mask"]], dim=1)
        first = self.accelerator.process_index * len(ids)
        scores = self._scores[first : first + len(ids)].float()
        if self.config.missing_end_penalty:
            ended = (
                out["completion_ids"][:, :, None] == torch.tensor(list(self.eos_token_ids), device=ids.device)
            ).any(-1)
            scores = scores - self.config.missing_end_penalty * (~(ended & mask.bool()).any(dim=1)).float()
        log_probs, units = [], []
        with torch.no_grad():
            for start in range(0, len(ids), self.args.per_device_train_batch_size):
                part = slice(start, start + self.args.per_device_train_batch_size)
                said, _, _ = self._get_per_token_logps_and_entropies(
                    self.model, ids[part], attention[part], mask.size(1)
                )
                log_probs.append(said)
                units.append(self._hidden[:, -mask.size(1) - 1 : -1])
        old, states = torch.cat(log_probs).float(), torch.cat(units)
        reference = out.pop("ref_per_token_logps", None)
        rewards = token_rewards(scores, old, reference, mask, self.config.kl_coef)
        figures = {}
        self._see(discounted(rewards, mask, self.config.gamma), mask)
        if self.config.critic:
            with torch.no_grad():
                expected = self.value_head.values(self.value_head(states).float()) * mask
            plain = gae(rewards, expected, mask, self.config.gamma, self.config.gae_lambda)
            figures["explained_variance"] = explained_variance(expected, plain + expected, mask, self._sum)
        else:
            expected = torch.zeros_like(mask)
            plain = discounted(rewards, mask, self.config.gamma)
        returns = plain + expected
        figures["returns"] = masked_moments(returns, mask, self._sum)[0].item()
        if reference is not None:
            figures["kl"] = self.accelerator.reduce(
                ((old - reference) * mask).sum(dim=1).mean(), "mean"
            ).item()
        for name, value in figures.items():
            self._metrics["train"][name].append(value)
        least = LEAST * self.value_head.widest.item()
        out |= {"advantages": whiten(plain, mask, least, self._sum), "old_per_token_logps": old}
        if self.config.critic:
            out |= {"returns": returns, "old_values": expected}
        return out

    def _sum(self, value: Tensor) -> Tensor:
        """Returns the sum of a number over all processes."""
        return self.accelerator.reduce(value, "sum")

    def _see(self, returns: Tensor, mask: Tensor) -> None:
        """Shows the value head the returns of all processes."""
        sums = torch.stack([(returns * mask).sum(), (returns**2 * mask).sum(), mask.sum()])
        total, squares, count = self._sum(sums)
        self.value_head.see(total / count.clamp(min=1), squares / count.clamp(min=1))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Returns the parent's clipped policy loss plus the clipped value loss, both averaged over the tokens
        of the update.

        The mean over the processes is that over the tokens of all: each process's loss is weighed with its
            share of them.
        """
        loss = super()._compute_loss(model, inputs)
        if not self.model.training:
            return loss
        mask = inputs["completion_mask"].float()
        count = mask.sum()
        everyone = self._sum(count)
        if "returns" in inputs:
            units, before = self._critic(mask.size(1)), self.value_head.units(inputs["old_values"])
            wanted = self.value_head.units(inputs["returns"])
            value_loss = (
                clipped_value_loss(units, before, wanted, self.config.value_clip_range) * mask
            ).sum()
            moved = (((units - before).abs() > self.config.value_clip_range).float() * mask).sum()
            loss = loss + self.config.vf_coef * value_loss / count
            for name, total in (("value_loss", value_loss.detach()), ("clip_ratio/value", moved)):
                self._metrics["train"][name].append((self._sum(total) / everyone).item())
        return loss * (count * self.accelerator.num_processes / everyone)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Does the step; the value head, which no wrapper knows,
        gets the mean of the processes' gradients.
        """
        # the library zeroes the policy's gradients alone; every micro-step is an update here
        self.value_head.zero_grad()
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            heads = [p for p in self.value_head.parameters() if p.grad is not None]
            if self.accelerator.num_processes > 1:
                for parameter in heads:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
            nn.utils.clip_grad_norm_(heads, self.args.max_grad_norm)
        return loss

    def extras(self) -> Any:
        """Returns the value head's state: its running moments change with every batch of answers."""
        return {name: value.clone() for name, value in self.value_head.state_dict().items()}

    def put_extras(self, extras: Any) -> None:
        """Puts it back."""
        self.value_head.load_state_dict(extras)

    def save_extras(self, folder: Path) -> None:
        """Writes the value head into a checkpoint."""
        save_file(
            {name: value.contiguous() for name, value in self.value_head.state_dict().items()},
            folder / VALUE_HEAD,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        with restoring(resume_from_checkpoint):
            self.value_head.load_state_dict(load_file(Path(resume_from_checkpoint) / VALUE_HEAD))


def prepare(config: PPOConfig, device: str, precision: str, console: Console) -> Job:
    """Returns the job of a PPO run.

    Raises:
        LabError: when policy, rewards or prompts do not load, or a reward of the person's own was not agreed
            to.
    """
    agree(config.reward_model)
    rewards = [reward_function(source, device) for source in config.reward_model]
    model, tokenizer = load_policy(config, device, precision)
    tokenizer.padding_side = "left"
    ensure_chat_template(tokenizer)
    ends = stop_at_turn_ends(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    data = prompts_data(config, tokenizer)
    held = config.kl_coef > 0
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=data,
        arguments=partial(
            trl.GRPOConfig,
            beta=0.0,
            # the least that the parent allows; here each answer is compared with the critic alone
            num_generations=2,
            num_generations_eval=1,
            generation_batch_size=config.batch_size * processes(),  # the library counts all processes
            max_completion_length=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            epsilon=config.clip_range,
            loss_type="bnpo",  # the mean over the tokens of a mini-batch
            num_iterations=config.ppo_epochs,
            reward_weights=[source.weight for source in config.reward_model],
            generation_kwargs={"eos_token_id": ends},
        ),
        trainer=partial(
            PPOTrainer,
            config=config,
            reward_funcs=rewards,
            held=held,
            reference=frozen_copy(model) if held else None,
            adapter_dropout=config.adapter_dropout,
        ),
        parent=find_model(config.policy_checkpoint),
        best_by="eval_reward",
    )
