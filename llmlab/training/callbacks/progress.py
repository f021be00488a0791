"""How far a training is, told to the run's reporter."""

from __future__ import annotations

from collections.abc import Sized

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.training.engine.reporter import Progress, Reporter, TrainingStart


class ReportProgress(TrainerCallback):
    """Tells a reporter of updates, logged figures and validations.

    Args:
        reporter: that is told.
        start: what it is told when the training begins.
    """

    def __init__(self, reporter: Reporter, start: TrainingStart):
        self.reporter, self.start = reporter, start
        self.validated = 0  # batches of the validation that is going on

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Tells what begins."""
        self.reporter.begin(self.start, progress_of(state))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Tells of an update."""
        self.reporter.progress(progress_of(state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        """Tells of new figures."""
        figures = {key: value for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        if "eval_reward" in figures:  # what TRL calls loss there is none: it is 0 by construction
            figures.pop("eval_loss", None)
        self.reporter.figures(progress_of(state), figures)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: object = None,
        **kwargs: object,
    ) -> None:
        """Tells how far a validation is."""
        self.validated += 1
        total = len(eval_dataloader) if isinstance(eval_dataloader, Sized) else 0
        self.reporter.validating(progress_of(state), self.validated, total)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Tells that a validation is over."""
        self.validated = 0
        self.reporter.validating(progress_of(state), 0, 0)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Lets the reporter give the screen back."""
        self.reporter.close()


def progress_of(state: TrainerState) -> Progress:
    """Returns how far a trainer's state says that it is."""
    return Progress(state.global_step, state.max_steps, int(state.num_input_tokens_seen))
