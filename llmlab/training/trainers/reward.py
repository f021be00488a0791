"""TRL's trainer of reward models, on pairs that are tokenised already."""

from __future__ import annotations

from typing import Any

from trl.trainer import reward_trainer as trl_trainer

from llmlab.models.adapters import set_dropout
from llmlab.training import compat
from llmlab.training.held_out import pair_weights
from llmlab.training.trainers.base import LabTrainerMixin

compat.check("trl.RewardTrainer")


class RewardTrainer(LabTrainerMixin, trl_trainer.RewardTrainer):
    """TRL's trainer on pairs that are tokenised already.

    Args:
        adapter_dropout: dropout of the adapter; of the model itself there is none.
        **kwargs: of TRL's trainer.
    """

    def __init__(self, *args: Any, adapter_dropout: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        set_dropout(self.model, adapter_dropout)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def held_out_weights(self, inputs: Any) -> dict[str, float]:
        """Returns the pairs of a batch, and its tokens for what is a mean over tokens."""
        return pair_weights(inputs)
