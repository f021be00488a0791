"""log pi(y|x): the log-probability of every token of an answer, without the logits of all of them in memory.

The projection over the vocabulary is TRL's `ChunkedLogProbFunction`, which its DPO and GRPO trainers call as
well: a tile of tokens and words at a time, made anew in the backward pass. So whatever is compared with what
these trainers computed (a cached reference, a policy of a moment ago) was computed by the same kernel.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llmlab.data.rendering import IGNORE_INDEX
from llmlab.models.adapters import without_adapter
from llmlab.models.transformer.modeling import real_positions

VOCABULARY_TILE = 1 << 15  # words of a tile of logits; the kernel takes 4,096 tokens at a time


class TokenScores(NamedTuple):
    """Figures of tokens given what precedes each; 0 where none was asked for. In fp32.

    Attributes:
        log_probs: log pi of each token.
        entropy: in nats, of the distribution that each token was drawn from; None where not asked for.
    """

    log_probs: Tensor
    entropy: Tensor | None


def logit_scaling(model: PreTrainedModel) -> tuple[float, float | None]:
    """Returns what a model multiplies its head's product by, and the bound of its tanh soft cap or None.

    Each architecture has its own name for the factor (Cohere, Falcon-H1, Granite, HyperCLOVA X ...).
    """
    config = model.config.get_text_config()
    scale = next(
        (
            value
            for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
            if (value := getattr(config, name, None)) is not None
        ),
        None,
    )
    if scale is None and (divisor := getattr(config, "logits_scaling", None)) is not None:
        scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
    return 1.0 if scale is None else scale, getattr(config, "final_logit_softcapping", None)


def score_tokens(
    model: PreTrainedModel,
    hidden_states: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> TokenScores:
    """Returns log pi(target | hidden state) by the model's head.

    Args:
        model: whose head is used; without an adapter's wrapper.
        hidden_states: of the backbone, each one place before its target, (B, T, D).
        targets: token ids, (B, T).
        mask: which are asked for, (B, T); the others cost nothing.
        temperature: that the logits are divided by.
        entropy: whether it is wanted, too.
    """
    from trl.kernels import (
        ChunkedLogProbFunction,
    )  # here: evaluation need not wait for TRL where it has no use

    head = model.get_output_embeddings()
    weight, bias = (p.full_tensor() if isinstance(p, DTensor) else p for p in (head.weight, head.bias))
    mask = mask.bool().to(weight.device)
    scale, softcap = logit_scaling(model)
    with _gathered(weight, bias):
        log_probs, entropies, *_ = ChunkedLogProbFunction.apply(
            hidden_states.to(weight.device)[mask],
            weight,
            bias,
            targets.to(weight.device)[mask],
            temperature,
            min(VOCABULARY_TILE, len(weight)),
            softcap,
            scale,
            ("log_probs", "entropy") if entropy else ("log_probs",),
        )

    # scattered, so that a batch without a single target stays connected to the weights: processes wait for it
    def placed(values: Tensor) -> Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    return TokenScores(placed(log_probs), None if entropies is None else placed(entropies))


def _gathered(weight: Tensor, bias: Tensor | None) -> AbstractContextManager[None]:
    """Returns a context in which weights that DeepSpeed's ZeRO-3 keeps in parts are whole."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    gather: Any = maybe_gather_lm_head_ctx  # annotated with parameters alone; a head may have no bias
    whole: AbstractContextManager[None] = gather(weight, bias)
    return whole


def read(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Any:
    """Returns what a model's backbone makes of rows, padded on either side: `last_hidden_state` (B, T, D) ...

    Positions are those of the tokens as if there were no padding before them, as `generate` has them.

    Args:
        model: without an adapter's wrapper.
        input_ids: token ids, (B, T).
        attention_mask: 0 at padding, (B, T).
        **inputs: of the backbone.
    """
    backbone = model.base_model
    if "position_ids" in inspect.signature(type(backbone).forward).parameters:
        inputs["position_ids"] = real_positions(attention_mask)
    return backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **inputs)


def score_answers(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, length: int, *, temperature: float = 1.0
) -> Tensor:
    """Returns log pi of each of the last `length` tokens of rows, (B, length); 0 at padding.

    Args:
        model: with an adapter or without.
        input_ids: prompts, padded on the left, and answers, padded on the right, (B, P + length).
        attention_mask: 0 at padding, of that shape.
        length: tokens of the longest answer.
        temperature: that the logits are divided by.
    """
    inner = without_adapter(model)
    states = read(inner, input_ids, attention_mask).last_hidden_state[:, -length - 1 : -1]
    answer, mask = input_ids[:, -length:], attention_mask[:, -length:]
    return score_tokens(inner, states, answer, mask, temperature=temperature).log_probs


class AnswerScorer(nn.Module):
    """`score_answers` of a model, as a module: what divides a model over devices watches the calls of one.

    Args:
        model: with an adapter or without.
        temperature: that the logits are divided by.
    """

    def __init__(self, model: nn.Module, temperature: float):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, input_ids: Tensor, attention_mask: Tensor, length: int) -> Tensor:
        """Returns log pi of each of the last `length` tokens of rows, (B, length); 0 at padding."""
        return score_answers(self.model, input_ids, attention_mask, length, temperature=self.temperature)


def score_labels(model: nn.Module, input_ids: Tensor, labels: Tensor, **inputs: Any) -> Tensor:
    """Returns log pi of the labels of rows, (B, T - 1): that of `labels[:, t + 1]` stands at t.

    Args:
        model: with an adapter or without.
        input_ids: token ids, (B, T).
        labels: the same where they are asked for, -100 elsewhere, where 0 is returned.
        **inputs: of the backbone: `attention_mask`, or `position_ids` of packed rows.
    """
    inner = without_adapter(model)
    states = inner.base_model(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    return score_tokens(inner, states, targets, targets != IGNORE_INDEX).log_probs


@torch.no_grad()
def answer_log_probs(
    model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]], pad_token_id: int
) -> Tensor:
    """Returns log pi(y|x), the sum over the answer's tokens alone, for each prompt and its answer, (N,)."""
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    longest, device = max(map(len, rows)), model.device
    ids = torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    labels = ids.masked_fill(mask == 0, IGNORE_INDEX)
    for label, prompt in zip(labels, prompts, strict=True):
        label[: len(prompt)] = IGNORE_INDEX
    return score_labels(model, ids, labels, attention_mask=mask).sum(dim=1)
