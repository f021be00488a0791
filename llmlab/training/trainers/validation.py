"""Held-out figures over all rows of all processes, each a mean over what it counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean, pstdev
from typing import Any, cast

import torch
from accelerate.data_loader import DataLoaderShard
from torch import Tensor
from torch.utils.data import Dataset

from llmlab.training import compat
from llmlab.training.held_out import EACH, HeldOutBatches, HeldOutFigures, learned_tokens
from llmlab.training.trainers.library import LibraryTrainer


class HeldOutMixin(LibraryTrainer):
    """The validation of a trainer: every row once, in order, and figures that no batch size changes."""

    _held_out: HeldOutFigures

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoaderShard:
        """Returns the batches of this process: every held-out row once, in order, over all processes."""
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str) and isinstance(self.eval_dataset, dict):
            rows = self.eval_dataset[rows]
        args = self.args
        alike = self.get_tp_size()  # processes that have the same rows
        batches = HeldOutBatches(
            len(rows),
            args.per_device_eval_batch_size,
            args.process_index // alike,
            args.world_size // alike,
        )
        return DataLoaderShard(
            rows,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            generator=torch.Generator(),  # a loader that begins draws a number: not the one of dropout
            _drop_last=True,  # no row comes twice: there is none to take off again
        )

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Reads a batch of a validation, and notes its figures."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = cast(Tensor, self.compute_loss(model, inputs)).detach().mean()
        self._held_out.add(*self.held_out_batch(inputs, loss))
        return loss, None, None

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Puts figures over all tokens or rows in the place of means over batches."""
        self._held_out = HeldOutFigures(dataloader.batch_sampler.shares)
        with self._router_loss_left_out():
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        figures = self.held_out_figures(self._held_out.totals(self._over_processes))
        prefix = kwargs.get("metric_key_prefix", "eval")
        assert output.metrics is not None
        output.metrics.pop(f"{prefix}_loss", None)
        output.metrics.update({f"{prefix}_{name}": value for name, value in figures.items()})
        return output

    def held_out_batch(self, inputs: Any, loss: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the figures of the batch that was just read, and what they are means over, by name."""
        return {"loss": loss.item(), **compat.pop_eval_metrics(self)}, self.held_out_weights(inputs)

    def held_out_weights(self, inputs: Any) -> dict[str, float]:
        """Returns what the figures of a batch are means over: here the tokens that are learned."""
        return {EACH: learned_tokens(inputs["labels"])}

    def held_out_figures(self, totals: dict[str, float]) -> dict[str, float]:
        """Returns the held-out figures, made of the means over all rows."""
        return totals

    @contextmanager
    def _router_loss_left_out(self) -> Iterator[None]:
        """Leaves out the loss that balances a mixture's experts: it is one of a whole batch,
        not a mean over its tokens.
        """
        text_config = self.model.config.get_text_config()
        by_model, by_trl = (
            getattr(text_config, "output_router_logits", None),
            getattr(self, "aux_loss_enabled", None),
        )
        if by_model:
            text_config.output_router_logits = False
        if by_trl:
            self.aux_loss_enabled = False
        try:
            yield
        finally:
            if by_model:
                text_config.output_router_logits = by_model
            if by_trl:
                self.aux_loss_enabled = by_trl

    def _over_processes(self, sums: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return sums
        together: Tensor = self.accelerator.reduce(sums.to(self.accelerator.device), "sum")
        return together.cpu()

    def evaluate(
        self,
        eval_dataset: Dataset[Any] | dict[str, Dataset[Any]] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Returns the held-out figures; of several sources each by itself, their mean,
        and the spread of the losses.
        """
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        figures = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        return self._over_sources(figures, list(chosen)) if isinstance(chosen, dict) else figures

    def _over_sources(self, figures: dict[str, float], names: list[str]) -> dict[str, float]:
        together = over_sources(figures, names)
        self.log(together)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, together)
        return {**figures, **together}


def over_sources(figures: dict[str, float], names: list[str]) -> dict[str, float]:
    """Returns the mean over the sources of every `eval_<source>_...` figure,
    and the standard deviation of the losses.
    """
    kinds = [key.removeprefix(f"eval_{names[0]}_") for key in figures if key.startswith(f"eval_{names[0]}_")]
    means = {}
    for kind in kinds:
        values = [figures[f"eval_{name}_{kind}"] for name in names]
        if not kind.endswith(("runtime", "per_second", "num_tokens")):
            means[f"eval_{kind}"] = fmean(values)
        if kind == "loss":
            means["eval_loss_spread"] = pstdev(values)
    return means
