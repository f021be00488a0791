"""The trainer of a dual head: a loss in three parts, its means over a whole update."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer

from llmlab.models.dual_head.modeling import LabDualHeadForCausalLM
from llmlab.training.held_out import EACH
from llmlab.training.trainers.base import LabTrainerMixin


def entropy(alpha: Tensor) -> Tensor:
    """Returns -a log a - (1 - a) log(1 - a) in nats, of the shape of alpha."""
    alpha = alpha.clamp(1e-6, 1 - 1e-6)
    return -(alpha * alpha.log() + (1 - alpha) * (1 - alpha).log())


class DualHeadTrainer(LabTrainerMixin, Trainer):
    """transformers' trainer with the three-part loss.

    Args:
        lambda_r: weight of the preference.
        lambda_g: weight of the gate's entropy.
        beta_r: steepness of the preference.
        **kwargs: of transformers' trainer.
    """

    def __init__(self, *args: Any, lambda_r: float, lambda_g: float, beta_r: float, **kwargs: Any):
        self.lambda_r, self.lambda_g, self.beta_r = lambda_r, lambda_g, beta_r
        self._metrics: dict[str, dict[str, list[float]]] = {
            "train": defaultdict(list)
        }  # since the last log, as TRL keeps them
        self._batch: dict[str, tuple[float, int]] = {}  # of the batch of a validation
        self._pairs: Tensor | None = None
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:
            # the backbone's head may be its embedding, which FSDP cannot divide beside a head of our own;
            # both are frozen, so every device keeps them whole
            backbone = cast(LabDualHeadForCausalLM, self.model).backbone
            kept = [backbone.get_input_embeddings(), backbone.get_output_embeddings()]
            self.accelerator.state.fsdp_plugin.ignored_modules = kept

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Returns the micro-batches of an update and the tokens that they learn from,
        all processes together.
        """
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.tensor(
            [[sum(len(b["labels"]) for b in samples), sum(int(b["paired"].sum()) for b in samples)]]
        )
        tokens, self._pairs = self.accelerator.gather(counts.to(device)).sum(0)
        return samples, tokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns this micro-batch's part of the loss of the update; in validation the loss of the batch."""
        scores = model(**inputs)
        uncertain = entropy(scores.alpha)
        preference = -F.logsigmoid(self.beta_r * scores.margin)
        tokens: int | Tensor = len(scores.alpha)
        pairs: int | Tensor = len(scores.margin)
        processes = 1
        if self.model.training and num_items_in_batch is not None and self._pairs is not None:
            tokens, pairs, processes = num_items_in_batch, self._pairs, self.accelerator.num_processes
        loss = (-scores.fused.sum() - self.lambda_g * uncertain.sum()) / tokens
        loss = loss + self.lambda_r * preference.sum() / max(1, pairs)
        self._note(scores, preference, uncertain)
        loss = loss * processes  # gradients are averaged over processes
        return (loss, scores) if return_outputs else loss

    @torch.no_grad()
    def _note(self, scores: Any, preference: Tensor, uncertain: Tensor) -> None:
        per_token, per_pair = len(scores.alpha), len(scores.margin)
        sums = {
            "lm_loss": (-scores.fused.sum(), per_token),
            "alpha": (scores.alpha.sum(), per_token),
            "gate_entropy": (uncertain.sum(), per_token),
            "preference_loss": (preference.sum(), per_pair),
            "reward_accuracy": ((scores.margin > 0).sum(), per_pair),
            "reward_margin": (scores.margin.sum(), per_pair),
        }
        if not self.model.training:
            self._batch = {name: (float(total), count) for name, (total, count) in sums.items()}
            return
        flat = torch.tensor(
            [[float(total), float(count)] for total, count in sums.values()], device=self.args.device
        )
        flat = self.accelerator.reduce(flat, "sum").tolist()
        for name, (total, count) in zip(sums, flat, strict=True):
            self._metrics["train"][name].append(total)
            self._metrics["train"][f"{name}/count"].append(count)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss since the last log."""
        super().log({**logs, **self._parts()} if "loss" in logs else logs, start_time)

    def held_out_batch(self, inputs: Any, loss: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the parts of a batch's loss, and the tokens or pairs that each is a mean over."""
        figures = {name: total / max(1, count) for name, (total, count) in self._batch.items()}
        return figures, {EACH: 0, **{name: count for name, (_, count) in self._batch.items()}}

    def held_out_figures(self, totals: dict[str, float]) -> dict[str, float]:
        """Returns the loss made of its parts, and the parts."""
        loss = totals["lm_loss"] - self.lambda_g * totals["gate_entropy"]
        loss += self.lambda_r * totals.get("preference_loss", 0.0)
        return {"loss": loss, **totals, "perplexity": perplexity(totals["lm_loss"])}

    def _parts(self) -> dict[str, float]:
        """Returns the figures of training noted since the last time, each a mean over tokens or pairs."""
        noted = self._metrics["train"]
        counts = {name: sum(noted[f"{name}/count"]) for name in list(noted) if not name.endswith("/count")}
        figures = {name: sum(noted[name]) / count for name, count in counts.items() if count}
        if "lm_loss" in figures:
            figures["perplexity"] = perplexity(figures["lm_loss"])
        noted.clear()
        return figures


def perplexity(loss: float) -> float:
    """Returns e to the loss in nats per token, bounded where a run has gone astray."""
    return math.exp(min(50.0, loss))
