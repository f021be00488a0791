"""Which engine is really in effect, said when the training begins."""

from __future__ import annotations

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.training.engine.reporter import Reporter
from llmlab.training.engine.sharing import Sharing, in_effect


class SayEngine(TrainerCallback):
    """Says which engine is in effect, and how many parameters it divides.

    Args:
        sharing: that was asked for.
        reporter: that is told.
    """

    def __init__(self, sharing: Sharing, reporter: Reporter):
        self.sharing, self.reporter = sharing, reporter

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: object = None,
        **kwargs: object,
    ) -> None:
        """Looks at the model as it was prepared.

        Raises:
            LabError: when it is not divided as it should be.
        """
        if model is not None and (words := in_effect(model, self.sharing, optimizer)):
            self.reporter.note(words)
