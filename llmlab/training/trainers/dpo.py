"""TRL's preference trainer, on pairs whose answers are counted in one place."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from peft import PeftModel
from trl.trainer import dpo_trainer as trl_trainer

from llmlab.models.adapters import set_dropout
from llmlab.training import compat
from llmlab.training.held_out import pair_weights
from llmlab.training.order import SeededOrder
from llmlab.training.padding_free import answers_alone, make_padding_free
from llmlab.training.trainers.base import LabTrainerMixin

compat.check(compat.DPO)


class DPOTrainer(LabTrainerMixin, trl_trainer.DPOTrainer):
    """TRL's trainer on pairs that are tokenised already, so that what is counted as answer is decided in one
    place.

    Args:
        padding_free: whether the sequences of a batch share rows.
        order: of the training pairs.
        adapter_dropout: dropout of the adapter; of the model itself there is none.
        **kwargs: of TRL's trainer.
    """

    def __init__(
        self,
        *args: Any,
        order: SeededOrder | None = None,
        padding_free: bool = False,
        adapter_dropout: float = 0.0,
        **kwargs: Any,
    ):
        self._wanted = order
        sequential = kwargs["args"].precompute_ref_log_probs
        with compat.no_reference_model() if sequential else nullcontext():
            super().__init__(*args, **kwargs)
        set_dropout(self.model, adapter_dropout)
        if self.ref_model is not None:
            set_dropout(self.ref_model, 0.0)
        if padding_free:
            make_padding_free(
                self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
            )
            if self.ref_model is not None:
                make_padding_free(self.accelerator.unwrap_model(self.ref_model))

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def held_out_weights(self, inputs: Any) -> dict[str, float]:
        """Returns the pairs of a batch, and its tokens for what is a mean over tokens."""
        return pair_weights(inputs)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Returns the pairs as they are: their reference columns are there (`reference.with_reference`)."""
        return dataset

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with answers_alone():
            return super()._compute_loss(*args, **kwargs)

    def _make_order(self, library: Any) -> Any:
        return self._wanted or super()._make_order(library)
