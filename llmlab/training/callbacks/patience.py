"""The end of a run whose held-out figure gets no better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.runs.figures import better_of

PATIENCE = "patience"  # its file in a checkpoint


class PatienceExhausted(Exception):
    """A run was resumed behind the validation that ended it."""


@dataclass(frozen=True)
class EndedEarly:
    """Why a run ended before its last step.

    Attributes:
        figure: that got no better.
        patience: validations in a row without a better one.
        best: the best value that there was.
        step: after which it ended.
    """

    figure: str
    patience: int
    best: float
    step: int


class Patience(TrainerCallback):
    """Ends a run after so many validations in a row whose figure is not better than the best before them.

    It is a `Stateful` part of the trainer: a resumed run goes on counting where it was stopped.

    Args:
        figure: that decides; which of its values are better follows from its name.
        patience: validations.
    """

    def __init__(self, figure: str, patience: int):
        self.figure, self.patience = figure, patience
        self.sign = -1.0 if better_of(figure) == "lower" else 1.0
        self.best, self.waited, self.step = float("-inf"), 0, 0

    @property
    def exhausted(self) -> bool:
        """Whether the run has to end."""
        return self.waited >= self.patience

    @property
    def ended(self) -> EndedEarly | None:
        """Why the run ended; None where it did not."""
        if not self.exhausted:
            return None
        return EndedEarly(self.figure, self.patience, self.sign * self.best, self.step)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the best value so far, and the validations since it."""
        return {
            "best": torch.tensor(self.best, dtype=torch.float64),
            "waited": torch.tensor(self.waited),
            "step": torch.tensor(self.step),
        }

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes what `state_dict` returned."""
        self.best = float(state_dict["best"])
        self.waited, self.step = int(state_dict["waited"]), int(state_dict["step"])

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Counts a validation; the untrained model's does not count, nor those of single sources."""
        value = (metrics or {}).get(self.figure)
        if value is None or state.global_step == 0 or self.exhausted:
            return
        better = self.sign * value > self.best
        if better:
            self.best = self.sign * value
        self.waited, self.step = 0 if better else self.waited + 1, state.global_step
        if self.exhausted:
            control.should_save = control.should_training_stop = True
