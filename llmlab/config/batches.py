"""The two ways to say how rows are divided over forward passes and updates.

Each method declares the options itself, with its own unit, default and place in the form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmlab.config.training import TrainingConfig


class AccumulatedBatches(TrainingConfig):
    """A batch is what one forward pass takes; several of them make an update."""

    if TYPE_CHECKING:
        batch_size: int
        gradient_accumulation_steps: int

    @property
    def micro_batch_size(self) -> int:
        """Rows on one device in one forward pass."""
        return self.batch_size

    @property
    def accumulation_steps(self) -> int:
        """Forward and backward passes per optimizer step."""
        return self.gradient_accumulation_steps


class DividedBatches(TrainingConfig):
    """A batch is what an update takes (for PPO: what one round of answers takes);
    it is divided into mini-batches, one forward pass each.
    """

    if TYPE_CHECKING:
        batch_size: int
        mini_batch_size: int

    @property
    def micro_batch_size(self) -> int:
        """Rows on one device in one forward pass."""
        return self.mini_batch_size

    @property
    def accumulation_steps(self) -> int:
        """Forward and backward passes per optimizer step."""
        return self.batch_size // self.mini_batch_size
