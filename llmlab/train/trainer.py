"""What every trainer of the lab does beside its method."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from llmlab.train.optimizers import HESSIAN_EVERY, SophiaG, gauss_newton_diagonal
from llmlab.train.trouble import Trouble, suspects


class LabTrainerMixin:
    """Updates that would break the weights are skipped; Sophia's curvature; the mean over validation sources.

    Attributes:
        trouble: who is told of skipped updates; None lets every update pass.
    """

    trouble: Trouble | None = None
    _suspects: tuple[str, ...] = ()

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Does the step, then the estimate where one is due."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.trouble and not torch.isfinite(loss):
            self._suspects += suspects(self, model, inputs)
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        due = self.state.global_step % HESSIAN_EVERY == 0 and self.accelerator.sync_gradients
        if isinstance(optimizer, SophiaG) and due:
            estimate = gauss_newton_diagonal(model, optimizer, self._prepare_inputs(inputs))
            optimizer.hessian = [self.accelerator.reduce(part, "mean") for part in estimate]
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Returns the norm; where it, or a loss of this update, is not finite, the update is made to change nothing."""
        norm = super()._get_grad_norm(model, grad_norm)
        bad = not torch.isfinite(torch.as_tensor(norm)) or bool(self._suspects)
        if self.accelerator.num_processes > 1:  # all skip, or none
            bad = bool(self.accelerator.reduce(torch.tensor(float(bad), device=self.args.device), "sum").item())
        if self.trouble:
            if bad and not self.args.fp16:  # in fp16 the scaler skips, and lowers its scale
                for group in self.optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
            self.trouble.note(self.state.global_step + 1, bad, norm, self._suspects, fp16=self.args.fp16)
        self._suspects = ()
        return norm

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns the held-out figures; of several sources each by itself, their mean, and the spread of the losses."""
        figures = super().evaluate(eval_dataset, *args, **kwargs)
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(chosen, dict):
            return figures
        together = over_sources(figures, list(chosen))
        self.log(together)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, together)
        return {**figures, **together}


def over_sources(figures: dict[str, float], names: list[str]) -> dict[str, float]:
    """Returns the mean over the sources of every `eval_<source>_...` figure, and the standard deviation of the losses."""
    kinds = [key.removeprefix(f"eval_{names[0]}_") for key in figures if key.startswith(f"eval_{names[0]}_")]
    means = {}
    for kind in kinds:
        values = [figures[f"eval_{name}_{kind}"] for name in names]
        if not kind.endswith(("runtime", "per_second", "num_tokens")):
            means[f"eval_{kind}"] = statistics.fmean(values)
        if kind == "loss":
            means["eval_loss_spread"] = statistics.pstdev(values)
    return means
