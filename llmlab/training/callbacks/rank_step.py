"""How far each process of a job is, for the program that started them."""

from __future__ import annotations

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.launching.rank_files import RankFiles


class NoteStep(TrainerCallback):
    """Notes every update in the files of this process."""

    def __init__(self, files: RankFiles):
        self.files = files

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Notes where it begins."""
        self.files.note_step(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Notes an update."""
        self.files.note_step(state.global_step)
