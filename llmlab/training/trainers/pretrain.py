"""The trainer of base training."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from llmlab.training.trainers.base import LabTrainerMixin


class BaseTrainer(LabTrainerMixin, Trainer):
    """transformers' trainer; the loss never needs all logits at once, in validation neither."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Asks the model for the loss alone."""
        return super().compute_loss(
            model, {**inputs, "skip_logits": True, "use_cache": False}, *args, **kwargs
        )
