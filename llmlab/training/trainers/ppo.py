"""The trainer of PPO: roll out, score, estimate advantages, then several epochs over the answers.

`transformers.Trainer` does the updates, one for each mini-batch; its loader hands out the prompts of a
rollout again for every update on their answers, so that a step and its place in the data stay one number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import GenerationConfig, Trainer

from llmlab.config import PPOConfig
from llmlab.data.rendering import render
from llmlab.models.adapters import add_reference_adapter, is_adapted, reference_adapter, set_dropout
from llmlab.models.log_probs import AnswerScorer
from llmlab.models.typed import LanguageModel
from llmlab.models.value_head import AnswerTokens, PolicyWithValueHead, ValueHead
from llmlab.training.advantages import (
    clipped_policy_loss,
    clipped_value_loss,
    discounted,
    explained_variance,
    gae,
    masked_moments,
    token_rewards,
    whiten,
)
from llmlab.training.engine.sharing import shard_frozen
from llmlab.training.engine.state import Stateful
from llmlab.training.engine.weights import whole_state
from llmlab.training.held_out import answer_weights, deviations, squares
from llmlab.training.order import RolloutOrder
from llmlab.training.rollouts import Answers, Reward, Rows, Seeds, answer_figures
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

NOTHING = -1  # in place of a token, behind an answer
VALUE_HEAD = "value_head"  # file of a checkpoint
MIN_STD = 0.5  # of the largest spread of returns so far: advantages that spread less are not blown up to 1


class PPOTrainer(LabTrainerMixin, Trainer):
    """Proximal policy optimisation of a policy with a value head (formulas: `llmlab.training.methods.ppo`).

    Args:
        model: the policy, with an adapter or without.
        config: of the run.
        rewards: that judge the answers.
        reference: frozen model that the policy is held to; None where `kl_coef` is 0, or where the policy is
            an adapter, of which a copy is kept.
        ends: ids of the tokens that end an answer.
        vllm: how vLLM writes the answers; None where the policy does itself.
        **kwargs: of `transformers.Trainer`.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        config: PPOConfig,
        rewards: Sequence[Reward],
        reference: LanguageModel | None,
        ends: Sequence[int],
        vllm: Answering | None = None,
        **kwargs: Any,
    ):
        self.config, self.rewards, self.ends = config, rewards, list(ends)
        together = PolicyWithValueHead(model, config.temperature, critic=config.critic)
        super().__init__(model=together, data_collator=list, **kwargs)
        has_reference = config.kl_coef > 0
        if has_reference and reference is None:
            add_reference_adapter(model)
        self.reference: nn.Module | None = None
        if has_reference and reference is not None:
            scorer = AnswerScorer(reference, config.temperature)
            self.reference = shard_frozen(scorer, self.accelerator)
        set_dropout(model, config.adapter_dropout)
        self.vllm = vllm.engine(model, self.accelerator, self.processing_class) if vllm else None
        self.eval_dataset = with_row_numbers(self.eval_dataset)
        # names that TRL's trainers have for the same, which `engine.state` keeps with a checkpoint
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
        self._buffered_inputs: list[dict[str, Tensor]] | None = None

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """Returns the optimizer of the policy, which trains the value head as it does the last weights of the
        policy, at a rate of its own and without decay.
        """
        if self.optimizer is not None or self.services is None:
            return super().create_optimizer(model)
        optimizer = self.services.optimizer(self.policy)
        if self.config.critic:
            others = {k: value for k, value in optimizer.param_groups[-1].items() if k != "params"}
            own = {"lr": self.config.value_learning_rate, "weight_decay": 0.0}
            optimizer.add_param_group({**others, "params": list(self.value_head.parameters()), **own})
        self.optimizer = optimizer
        return optimizer

    @property
    def together(self) -> PolicyWithValueHead:
        """Policy and value head, without what processes wrap around them."""
        return cast(PolicyWithValueHead, self.accelerator.unwrap_model(self.model))

    @property
    def policy(self) -> LanguageModel:
        """What is trained to answer."""
        return self.together.policy

    @property
    def value_head(self) -> ValueHead:
        """The critic's own weights."""
        return self.together.value_head

    # The place of an update among those on the same answers

    @property
    def mini_batches(self) -> int:
        """Updates in one pass over a batch of answers."""
        return self.config.batch_size // self.args.per_device_train_batch_size

    @property
    def updates_per_rollout(self) -> int:
        """Updates on each batch of answers."""
        return self.mini_batches * self.config.ppo_epochs

    @property
    def rollout_is_spent(self) -> bool:
        """Whether the next update begins with new answers."""
        return self.state.global_step % self.updates_per_rollout == 0

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the prompts of the rollout that each update belongs to."""
        own, processes = self.config.batch_size, self.args.world_size
        rows = cast(Any, self.train_dataset)  # rows that are stored, never a stream
        self.order = RolloutOrder(len(rows), own * processes, self.updates_per_rollout, self.args.seed)
        loader: DataLoader[Any] = DataLoader(
            rows,
            batch_size=own,
            sampler=self.order,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            drop_last=True,
        )
        return cast(DataLoader[Any], self.accelerator.prepare(loader))

    def training_step(  # type: ignore[override]  # a batch is rows, of which a rollout makes tensors
        self, model: nn.Module, inputs: Rows, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Does an update on the next mini-batch; rolls out first when there are no answers left."""
        update = self.state.global_step % self.updates_per_rollout
        mini_batches = self._buffered_inputs  # those of a checkpoint of an older version have other names
        if update == 0 or mini_batches is None or "old_log_probs" not in mini_batches[0]:
            self.model.eval()  # the answers are the policy's own, without an adapter's dropout
            rollout = self._roll_out(inputs)
            first = self.accelerator.process_index * len(inputs)
            parts = spread_over_updates(
                len(inputs), self.mini_batches, self.args.seed, self.state.global_step, first
            )
            mini_batches = [{name: value[part] for name, value in rollout.items()} for part in parts]
            self._buffered_inputs = mini_batches
        mini_batch = mini_batches[update % self.mini_batches]
        return cast(Tensor, super().training_step(model, mini_batch, *args, **kwargs))

    # Rollout

    @torch.no_grad()
    def _roll_out(self, rows: Rows) -> dict[str, Tensor]:
        """Answers prompts and estimates what the tokens of the answers were worth.

        Returns:
            `input_ids` and `attention_mask` (B, P + T); `old_log_probs`, `advantages` and, with a critic,
            `old_values` and `returns` in rewards, (B, T) each.
        """
        config, step = self.config, self.state.global_step
        first = self.accelerator.process_index * len(rows)
        seeds = seeds_of_rows(self.args.seed, ANSWERS, step, range(first, first + len(rows)))
        answers = self._answer(rows, seeds)
        mask = answers.mask
        self.state.num_input_tokens_seen += int(self._sum(answers.attention_mask.sum()))
        scores, figures = self._score(rows, answers)
        if config.missing_end_penalty:
            scores = scores - config.missing_end_penalty * (~answers.ended).float()
        old = self._read(answers)
        reference = self._reference_log_probs(answers) if config.kl_coef else None
        rewards = token_rewards(scores, old.log_probs, reference, mask, config.kl_coef)
        began = bool(self.value_head.batches)
        values = self.value_head.denormalize(old.values)
        self._update_stats(
            discounted(rewards, mask, config.gamma), mask
        )  # which leaves values as they are ...
        if not began:  # ... but the first: a critic begins by expecting the mean
            values = self.value_head.denormalize(old.values)
        rollout = {
            "input_ids": answers.input_ids,
            "attention_mask": answers.attention_mask,
            "old_log_probs": old.log_probs,
        }
        if config.critic:
            values = values * mask
            advantages = gae(rewards, values, mask, config.gamma, config.gae_lambda)
            returns = advantages + values
            figures["explained_variance"] = explained_variance(values, returns, mask, self._sum)
            rollout |= {"old_values": values, "returns": returns}
        else:
            advantages = returns = discounted(rewards, mask, config.gamma)
        figures["returns"] = masked_moments(returns, mask, self._sum)[0].item()
        if reference is not None:
            of_answers = ((old.log_probs - reference) * mask).sum(dim=1)
            figures["kl"] = self.accelerator.reduce(of_answers.mean(), "mean").item()
        self._note(num_tokens=float(self.state.num_input_tokens_seen), **figures)
        min_std = MIN_STD * self.value_head.max_std.item()
        return {**rollout, "advantages": whiten(advantages, mask, min_std, self._sum)}

    def _answer(self, rows: Rows, seeds: Seeds) -> Answers:
        """Lets the policy answer prompts, each row's tokens drawn by its own seed."""
        tokenizer, device = self.processing_class, self.accelerator.device
        prompts = [
            tokenizer(render(tokenizer, row["prompt"], generate=True), add_special_tokens=False)["input_ids"]
            for row in rows
        ]
        padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(device)
        token_ids = self._written_by_vllm(prompts, seeds) if self.vllm else self._written(padded, seeds)
        ends = torch.isin(token_ids, torch.tensor(self.ends, device=device))
        # up to the first end, itself included
        mask = (ends.cumsum(dim=1) - ends.long() == 0) & (token_ids != NOTHING)
        token_ids = token_ids.masked_fill(~mask, tokenizer.pad_token_id)
        own = [ids[row_mask].tolist() for ids, row_mask in zip(token_ids.cpu(), mask.cpu(), strict=True)]
        return Answers(
            input_ids=torch.cat([padded["input_ids"], token_ids], dim=1),
            attention_mask=torch.cat([padded["attention_mask"], mask.long()], dim=1),
            length=token_ids.size(1),
            ended=(ends & mask).any(dim=1),
            texts=tokenizer.batch_decode(own, skip_special_tokens=True),
            token_ids=own,
        )

    def _written(self, padded: Any, seeds: Seeds) -> Tensor:
        """Returns what the policy itself writes behind padded prompts, (B, T)."""
        tokenizer = self.processing_class
        generation = GenerationConfig(
            max_new_tokens=self.config.max_new_tokens,
            do_sample=True,
            temperature=self.config.temperature,
            top_k=self.config.top_k,
            top_p=self.config.top_p,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=self.ends,
            disable_compile=True,
            watermarking_config=SeededDraws(seeds, self.config.max_new_tokens),
        )
        with self.accelerator.autocast(), self._router_loss_left_out():
            written = self.model.generate(
                input_ids=padded["input_ids"],
                attention_mask=padded["attention_mask"],
                generation_config=generation,
                synced_gpus=self.is_fsdp_enabled,  # a process whose answers have ended still helps the others
            )
        return written[:, padded["input_ids"].size(1) :]

    def _written_by_vllm(self, prompts: list[list[int]], seeds: Seeds) -> Tensor:
        """Returns what vLLM writes behind prompts with the policy's weights, (B, T)."""
        assert self.vllm is not None
        written, _ = self.vllm.answers(prompts, seeds, self.state.global_step)
        longest = max(len(ids) for ids in written)
        rows = [ids + [NOTHING] * (longest - len(ids)) for ids in written]
        return torch.tensor(rows, device=self.accelerator.device)

    def _score(self, rows: Rows, answers: Answers) -> tuple[Tensor, dict[str, float]]:
        """Returns the score of each answer of this process, (B,), and the figures of those of all."""
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", ROW)}
        completions = [[{"role": "assistant", "content": text}] for text in answers.texts]
        device = self.accelerator.device
        each = torch.tensor(
            [
                reward.function(
                    prompts=[row["prompt"] for row in rows],
                    completions=completions,
                    completion_ids=answers.token_ids,
                    **columns,
                )
                for reward in self.rewards
            ],
            device=device,
        ).T  # (B, rewards)
        weights = torch.tensor([reward.weight for reward in self.rewards], device=device)
        lengths = answers.mask.sum(dim=1)
        together = (self.accelerator.gather(part) for part in (each, lengths, answers.ended))
        names = [reward.name for reward in self.rewards]
        return each @ weights, answer_figures(*together, names=names, weights=weights)

    def _read(self, answers: Answers) -> AnswerTokens:
        """Returns what policy and critic say of answers, a mini-batch at a time."""
        size = self.args.per_device_train_batch_size
        parts = zip(answers.input_ids.split(size), answers.attention_mask.split(size), strict=True)
        read = [self.model(ids, mask, answers.length) for ids, mask in parts]
        log_probs, entropy, values = (torch.cat([part[place] for part in read]) for place in range(3))
        return AnswerTokens(log_probs, entropy, values, None)

    def _reference_log_probs(self, answers: Answers) -> Tensor:
        """Returns log ref of the tokens of answers, (B, T)."""
        size = self.args.per_device_train_batch_size
        parts = zip(answers.input_ids.split(size), answers.attention_mask.split(size), strict=True)
        with self.accelerator.autocast():
            if self.reference is not None:
                return torch.cat([self.reference(ids, mask, answers.length) for ids, mask in parts])
            with reference_adapter(self.policy):
                return torch.cat([self.model(ids, mask, answers.length).log_probs for ids, mask in parts])

    def _sum(self, value: Tensor) -> Tensor:
        """Returns the sum of a number over all processes."""
        return cast(Tensor, self.accelerator.reduce(value, "sum"))

    def _update_stats(self, returns: Tensor, mask: Tensor) -> None:
        """Shows the value head the returns of all processes."""
        sums = torch.stack([(returns * mask).sum(), (returns**2 * mask).sum(), mask.sum()])
        total, squared, count = self._sum(sums)
        self.value_head.update_stats(total / count.clamp(min=1), squared / count.clamp(min=1))

    # Update

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Returns clipped policy loss plus `vf_coef` times clipped value loss, means over the tokens of the
        mini-batches of all processes.

        The gradients are averaged over the processes: each one's loss is weighed with its share of tokens.
        """
        config, old, advantages = self.config, inputs["old_log_probs"], inputs["advantages"]
        mask = inputs["attention_mask"][:, -advantages.size(1) :].float()
        tokens = model(inputs["input_ids"], inputs["attention_mask"], advantages.size(1))
        everyone = self._sum(mask.sum())

        def mean(values: Tensor) -> float:
            return (self._sum((values.detach() * mask).sum()) / everyone).item()

        loss = clipped_policy_loss(tokens.log_probs, old, advantages, config.clip_range)
        change = tokens.log_probs - old
        low = (change.exp() < 1 - config.clip_range) & (advantages < 0)
        high = (change.exp() > 1 + config.clip_range) & (advantages > 0)
        self._note(
            **{
                "entropy": mean(tokens.entropy),
                "approx_kl": mean(change.exp() - 1 - change),  # Schulman 2020, k3
                "clip_ratio/low_mean": mean(low.float()),
                "clip_ratio/high_mean": mean(high.float()),
                "clip_ratio/region_mean": mean((low | high).float()),
            }
        )
        if config.critic:
            normalize = self.value_head.normalize
            before, returns = normalize(inputs["old_values"]), normalize(inputs["returns"])
            value_loss = clipped_value_loss(tokens.values, before, returns, config.value_clip_range)
            outside = (tokens.values - before).abs() > config.value_clip_range
            self._note(**{"value_loss": mean(value_loss), "clip_ratio/value": mean(outside.float())})
            loss = loss + config.vf_coef * value_loss
        total: Tensor = (loss * mask).sum() / everyone * self.accelerator.num_processes
        if tokens.balance is None:
            return total
        self._note(aux_loss=self.accelerator.reduce(tokens.balance.detach(), "mean").item())
        balance: Tensor = self.together.balance_weight * tokens.balance
        return total + balance

    # Figures

    def _note(self, **figures: float) -> None:
        for name, value in figures.items():
            self._metrics["train"][name].append(value)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs the means of the figures since the last log beside the loss."""
        if self.model.training:
            noted = self._metrics["train"]
            logs.update({name: sum(values) / len(values) for name, values in noted.items()})
            noted.clear()
        super().log(logs, *args, **kwargs)

    def prediction_step(  # type: ignore[override]  # a batch is rows; a validation has no loss
        self, model: nn.Module, inputs: Rows, *args: Any, **kwargs: Any
    ) -> tuple[None, None, None]:
        """Answers held-out prompts, each row the same way whatever the batch, and notes what they score."""
        with torch.no_grad():
            seeds = seeds_of_rows(self.args.seed, HELD_OUT, 0, [row[ROW] for row in inputs])
            answers = self._answer(inputs, seeds)
            _, figures = self._score(inputs, answers)
            entropy = self._sum((self._read(answers).entropy * answers.mask).sum())
        figures["entropy"] = (entropy / self._sum(answers.mask.sum())).item()
        together = len(inputs) * self.accelerator.num_processes  # answers that the deviations are over
        self._held_out.add(squares(figures, together), answer_weights(len(inputs), figures))
        return None, None, None

    def held_out_figures(self, totals: dict[str, float]) -> dict[str, float]:
        """Returns the figures over all answers."""
        return deviations(totals)

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the policy as a plain model folder with its tokenizer; every process takes part."""
        folder, state = str(output_dir or self.args.output_dir), None
        if self.is_fsdp_enabled:
            main = self.is_world_process_zero()
            state = whole_state(self.policy, adapter_only=is_adapted(self.policy), main=main)
        if self.args.should_save:
            with self._put_off():
                self.policy.save_pretrained(folder, state_dict=state)
                self.processing_class.save_pretrained(folder)
        if self._aside is None:
            self._raise_put_off()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, self.policy)

    def stateful_parts(self) -> dict[str, Stateful]:
        """Returns the value head, whose running moments change with every batch of answers."""
        return {**super().stateful_parts(), VALUE_HEAD: self.value_head}
