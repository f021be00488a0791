"""When the suite of a run is evaluated."""

from __future__ import annotations

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SuiteSteps(TrainerCallback):
    """Asks the trainer to evaluate after every so many steps.

    It has to come behind the other callbacks, so that it sees whether a validation was asked for as well.

    Args:
        every: steps.
        validate_every: steps between two validations; 0 where no rows are held out.
    """

    def __init__(self, every: int, validate_every: int):
        self.every, self.validate_every = every, validate_every
        self._asked = (-1, False)  # the step, and whether something else asked for a validation there

    def is_due(self, step: int) -> bool:
        """Returns whether the suite is evaluated after a step; after the last one it is in any case."""
        return step % self.every == 0

    def validates(self, step: int) -> bool:
        """Returns whether held-out rows are validated behind a step; without the suite, nothing else can be
        meant.
        """
        if not self.validate_every:
            return False
        asked = self._asked == (step, True)
        return asked or not self.is_due(step) or step % self.validate_every == 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Asks for the evaluation."""
        self._asked = (state.global_step, control.should_evaluate)
        if self.is_due(state.global_step):
            control.should_evaluate = True
