"""The dual head: a language-model head, a reward head and a gate learn on a frozen backbone.

    L = L_LM + lambda_r L_pref - lambda_g H

L_LM is the mean cross-entropy of the fused logits over the chosen answers' tokens, L_pref = -log
sigmoid(beta_r [log pi_r(y+) - log pi_r(y-)]) the mean over pairs with pi_r = softmax(z_RM), and H the mean
entropy of the gate's alpha over those tokens: it is taken off the loss, so that it holds the gate away from 0
and 1. Means are over the whole update, however it is cut up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer, TrainingArguments

from llmlab.config import DualHeadConfig
from llmlab.data.dual_head import DualHeadCollator
from llmlab.data.prepare import dual_head_data
from llmlab.data.tokenizer import ensure_chat_template
from llmlab.errors import LabError
from llmlab.models import LabDualHeadConfig, LabDualHeadForCausalLM
from llmlab.models.adapters import without_adapter
from llmlab.models.load import load_model, stop_at_turn_ends
from llmlab.models.policy import loading_kwargs
from llmlab.models.resolve import resolve_model
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Reporter
from llmlab.training.held_out import EACH
from llmlab.training.trainers.base import LabTrainerMixin


def entropy(alpha: Tensor) -> Tensor:
    """Returns -a log a - (1 - a) log(1 - a) in nats, of the shape of alpha."""
    alpha = alpha.clamp(1e-6, 1 - 1e-6)
    return -(alpha * alpha.log() + (1 - alpha) * (1 - alpha).log())


class DualHeadTrainer(LabTrainerMixin, Trainer):
    """The library's trainer with the three-part loss.

    Args:
        lambda_r: weight of the preference.
        lambda_g: weight of the gate's entropy.
        beta_r: steepness of the preference.
        **kwargs: of the library's trainer.
    """

    def __init__(self, *args: Any, lambda_r: float, lambda_g: float, beta_r: float, **kwargs: Any):
        self.lambda_r, self.lambda_g, self.beta_r = lambda_r, lambda_g, beta_r
        self._metrics: dict[str, dict[str, list[float]]] = {
            "train": defaultdict(list)
        }  # since the last log, as TRL keeps them
        self._batch: dict[str, tuple[float, int]] = {}  # of the batch of a validation
        self._pairs: Tensor | None = None
        super().__init__(*args, **kwargs)

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
        tokens, pairs, processes = len(scores.alpha), len(scores.margin), 1
        if self.model.training and num_items_in_batch is not None:
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
        kept = self._metrics["train"]
        counts = {name: sum(kept[f"{name}/count"]) for name in list(kept) if not name.endswith("/count")}
        figures = {name: sum(kept[name]) / count for name, count in counts.items() if count}
        if "lm_loss" in figures:
            figures["perplexity"] = perplexity(figures["lm_loss"])
        kept.clear()
        return figures


def perplexity(loss: float) -> float:
    """Returns e to the loss in nats per token, bounded where a run has gone astray."""
    return math.exp(min(50.0, loss))


def prepare(config: DualHeadConfig, device: str, precision: str, reporter: Reporter) -> Job:
    """Returns the job of a dual-head run.

    Raises:
        LabError: when backbone or data do not load, or the backbone cannot carry two heads.
    """
    start = resolve_model(config.backbone)
    model, tokenizer = load_model(start, **loading_kwargs(config, device, precision))
    model = without_adapter(model)
    if isinstance(model, LabDualHeadForCausalLM) or model.config.is_encoder_decoder:
        kind = "an encoder-decoder" if model.config.is_encoder_decoder else "a dual-head model itself"
        raise LabError(
            f"is {kind}, no backbone", where=config.backbone, remedy="take a decoder (GPT, Llama, Qwen ...)"
        )
    ensure_chat_template(tokenizer, config.chat_template)
    stop_at_turn_ends(model, tokenizer)
    data = dual_head_data(config, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model = model.to(device) if config.quantised == "none" else model
    refuse_other_logits(model, config.backbone)
    about = LabDualHeadConfig(
        model.config.get_text_config(),
        backbone=str(start.path),
        **{
            name: getattr(config, name)
            for name in (
                "gating_num_heads",
                "gating_size",
                "gating_layer_norm",
                "gating_dropout",
                "rm_bias",
                "rm_dropout",
            )
        },
    )
    torch.manual_seed(config.seed)  # of the gate
    dual = LabDualHeadForCausalLM(about, model).float_heads()
    share = config.objective != "sft" and config.share_prompts and shares_prompts(model, config.max_length)
    return Job(
        model=dual,
        tokenizer=tokenizer,
        data=data,
        arguments=partial(TrainingArguments, label_names=["labels"]),
        trainer=partial(
            DualHeadTrainer,
            lambda_r=0.0 if config.objective == "sft" else config.lambda_r,
            lambda_g=config.lambda_g,
            beta_r=config.beta_r,
            data_collator=DualHeadCollator(tokenizer.pad_token_id or 0, share=share),
        ),
        parent=start.where,
    )


@torch.no_grad()
def refuse_other_logits(model: PreTrainedModel, name: str) -> None:
    """Refuses a backbone whose logits are not its head times its hidden states (scaled or capped ones): tried
    on itself.

    Raises:
        LabError: when they are not.
    """
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    wanted = model(input_ids=ids, use_cache=False).logits
    head = model.get_output_embeddings()
    made = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(wanted.float(), made.float(), atol=1e-3, rtol=1e-3):
        raise LabError(
            f"{type(model).__name__} scales or caps its logits, which two fused heads cannot follow",
            where=name,
            remedy="take a backbone with a plain head (Llama, Qwen, Mistral, GPT-2 ...)",
        )


@torch.no_grad()
def shares_prompts(model: PreTrainedModel, longest: int) -> bool:
    """Returns whether a prompt read once gives both answers the hidden states that they have alone: tried on
    the model itself.

    Sliding windows shorter than a row reach around the mask by which the answers are held apart.
    """
    about = model.config.get_text_config()
    window = getattr(about, "sliding_window", None)
    if (window and window < 2 * longest) or str(model.config._attn_implementation).startswith(
        ("flash", "flex")
    ):
        return False
    ids = [[(number * 7 + shift) % about.vocab_size for number in range(9)] for shift in (1, 2, 3)]
    row = {"prompt_ids": ids[0], "chosen_ids": ids[1], "chosen_labels": ids[1], "rejected_ids": ids[2][:5]}
    states = []
    for share in (True, False):
        batch = {
            name: value.to(model.device) for name, value in DualHeadCollator(0, share=share)([row]).items()
        }
        if share and "attention_mask" not in batch:
            return False
        mask = batch.get("attention_mask")
        mask = None if mask is None else mask.to(model.get_input_embeddings().weight.dtype)
        try:
            out = model.base_model(
                input_ids=batch["input_ids"],
                attention_mask=mask,
                position_ids=batch.get("position_ids"),
                use_cache=False,
            )
        except (RuntimeError, ValueError, TypeError, IndexError):  # it takes no mask of this form
            return False
        flat = out.last_hidden_state.flatten(0, 1).float()
        states.append(torch.cat([flat[batch["chosen_at"]], flat[batch["rejected_at"]]]))
    return torch.allclose(*states, atol=2e-2 * states[1].abs().max().item(), rtol=1e-2)
