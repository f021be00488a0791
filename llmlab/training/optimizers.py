"""The five optimizers, each from a maintained library: torch (AdamW, Adafactor) and pytorch-optimizer (Lion,
Sophia, Muon).

Weight decay falls on matrices only: never on norms, biases and embeddings (Loshchilov & Hutter 2019 decay
    all; leaving these out is what GPT-2 and its successors do).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_optimizer
import torch
from pytorch_optimizer import Lion, SophiaH
from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmlab.config.training import TrainingConfig
from llmlab.data.packing import document_bounds, takes_bounds
from llmlab.data.rendering import IGNORE_INDEX

HESSIAN_EVERY = 10  # steps between two curvature estimates (Liu et al. 2023, k)
READ = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "labels",
    "completion_mask",
)  # of a batch, for the estimate
SOPHIA_GAMMA = 0.05  # scale of the curvature in the update (Liu et al. 2023, gamma of Sophia-G)


class SophiaG(SophiaH):
    """Sophia with the Gauss-Newton-Bartlett estimate given from outside (Liu et al. 2023, algorithms 2 and
    3).

    pytorch-optimizer's class clips the update and keeps the moments; its own Hutchinson estimate needs second
    derivatives, which memory-saving losses do not have, so the curvature comes in through `hessian` before
    the step.
    """

    def __init__(self, params: Any, **kwargs: Any):
        super().__init__(params, p=1.0, update_period=2**62, **kwargs)
        self.hessian: list[Tensor] | None = None

    def step(  # type: ignore[override]  # as in SophiaH
        self, closure: Callable[[], float] | None = None, hessian: list[Tensor] | None = None
    ) -> float | None:
        """Does one update with the estimate that was handed over, if there is one."""
        estimate, self.hessian = self.hessian if hessian is None else hessian, None
        return super().step(closure, hessian=estimate)


class Muon(pytorch_optimizer.Muon):
    """Muon whose products are in float32 on processors, where few multiply in bfloat16 and the others only
    emulate it.

    On a GPU they stay in bfloat16, as published (Jordan et al. 2024).
    """

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        """Returns the matrices nearest to orthogonal ones, each (rows, columns),
        by Newton-Schulz iterations.
        """
        if updates[0].device.type != "cpu":
            return pytorch_optimizer.Muon._orthogonalize(group, updates)
        how = {"num_steps": group["ns_steps"], "weights": group["ns_coeffs"], "dtype": torch.float32}
        return [zero_power_via_newton_schulz_5(update.reshape(len(update), -1), **how) for update in updates]


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Returns the optimizer that the config names over the trainable parameters of `model`."""
    matrices, others = split_parameters(model)
    decayed = [p for _, p in matrices]
    rest = [p for _, p in others]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    adam: dict[str, Any] = {"betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_eps}
    # one kernel cannot take weights that are divided together with some that are not
    alike = len({isinstance(p, DTensor) for p in (*decayed, *rest)}) == 1
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.learning_rate, fused=alike, **adam)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=config.learning_rate)
        case "lion":
            betas = config.lion_beta1, config.lion_beta2
            return Lion(groups, lr=config.learning_rate, betas=betas, foreach=None if alike else False)
        case "sophia":
            return SophiaG(groups, lr=config.learning_rate, betas=(0.96, 0.99))
        case "muon":
            hidden = [p for name, p in matrices if not _is_head(name)]
            head = [p for name, p in matrices if _is_head(name)]
            orthogonal = {
                "momentum": config.muon_momentum,
                "nesterov": config.muon_nesterov,
                "use_muon": True,
            }
            groups = [
                {"params": hidden, "weight_decay": config.weight_decay, **orthogonal},
                {"params": head, "weight_decay": config.weight_decay, "use_muon": False, **adam},
                {"params": rest, "weight_decay": 0.0, "use_muon": False, **adam},
            ]
            # the adjusted scale of Liu et al. 2025 lets one learning rate serve both kinds of groups
            groups = [{**group, "lr": config.learning_rate} for group in groups if group["params"]]
            return Muon(groups, use_adjusted_lr=True)
    raise AssertionError(config.optimizer)


def split_parameters(model: nn.Module) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """Returns the trainable (name, parameter) pairs that weight decay falls on, and the others."""
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
    }
    matrices: list[tuple[str, Tensor]] = []
    others: list[tuple[str, Tensor]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim >= 2 and id(parameter) not in embeddings
            (matrices if decayed else others).append((name, parameter))
    return matrices, others


def gauss_newton_diagonal(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: dict[str, Any]
) -> list[Tensor]:
    """Returns gamma * B * g^2 for every parameter of the optimizer, g from labels sampled from the model
    itself.

    Liu et al. 2023, algorithm 2; B is the number of tokens that are learned: those with a label, or of an
    answer of a pair, as in the loss. Half of the rows are used, as the paper does. Over draws the mean is
    gamma times the diagonal of the Gauss-Newton matrix of the mean loss of these tokens.
    """
    rows = max(1, len(inputs["input_ids"]) // 2)
    part = {name: value[:rows] for name, value in inputs.items() if torch.is_tensor(value) and name in READ}
    plain: Any = getattr(model, "module", model)
    seq2seq = plain.config.is_encoder_decoder  # then the labels are read as well
    model_inputs = {
        name: value for name, value in part.items() if seq2seq or name not in ("labels", "completion_mask")
    }
    if "position_ids" in model_inputs and takes_bounds(plain):
        model_inputs |= document_bounds(model_inputs["position_ids"])
    logits = model(**model_inputs, use_cache=False).logits  # (b, T, V)
    flat = logits[_learned(part, seq2seq)].float()  # (B, V)
    sampled = torch.distributions.Categorical(logits=flat.detach()).sample()
    tokens = max(1, len(flat))
    loss = nn.functional.cross_entropy(flat, sampled, reduction="sum") / tokens
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g.square_().mul_(tokens * SOPHIA_GAMMA)
        for p, g in zip(parameters, gradients, strict=True)
    ]


def _learned(part: dict[str, Tensor], seq2seq: bool) -> Tensor:
    """Returns where the logits stand that the loss is computed of, (b, T), true or false."""
    if seq2seq:
        return part["labels"] != IGNORE_INDEX
    marks = part["labels"] != IGNORE_INDEX if "labels" in part else part["completion_mask"].bool()
    return nn.functional.pad(marks[:, 1:], (0, 1), value=False)  # a token is foretold one place before it


def _is_head(name: str) -> bool:
    return "lm_head" in name or name.endswith("score.weight")
