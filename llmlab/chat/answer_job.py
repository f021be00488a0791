"""The job of `generate --input`: what can be refused is refused before a model is loaded."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.chat.answers_file import AnswersFile
from llmlab.chat.prompts_file import PromptsFile
from llmlab.config.chat import BatchOptions, ChatSettings
from llmlab.config.loading import LoadOptions
from llmlab.errors import LabError
from llmlab.models.identity import known_weights
from llmlab.runs.folder import find_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmlab.chat.answering import Listener
    from llmlab.models.typed import LanguageModel

    Load = Callable[[], tuple[LanguageModel, PreTrainedTokenizerBase]]

LARGEST_SEED = 10_000_000


@dataclass
class AnswerJob:
    """Answers of one model to one file.

    Attributes:
        model: as a person names it.
        source: file of the prompts.
        target: file of the answers.
        settings: how it answers.
        load: how it is loaded.
        batch: how many at a time, and where the answers stand.
        count: rows of the input, once `refuse` has looked.
        done: rows that have an answer.
    """

    model: str
    source: Path
    target: Path
    settings: ChatSettings
    load: LoadOptions
    batch: BatchOptions
    count: int = 0
    done: int = 0
    made_with: dict[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> AnswersFile:
        """The file of the answers."""
        return AnswersFile(self.target, self.batch.column)

    @property
    def prompts(self) -> PromptsFile:
        """The file of the prompts."""
        return PromptsFile(self.source, self.answers.added)

    def refuse(self) -> None:
        """Looks at both files and at the name of the model; the caller holds the lock of the answers.

        Raises:
            LabError: when there is something that cannot be used, or the output is of something else.
        """
        self.count = self.prompts.check()
        if self.target.exists() and self.target.samefile(self.source):
            raise LabError("is the input itself", where=str(self.target), remedy="choose another output")
        find_model(self.model)
        made_with: dict[str, Any] = {
            "model": self.model,
            "weights": known_weights(self.model),
            "column": self.batch.column,
            "load_in": self.load.load_in,
            "dtype": self.load.dtype,
            "settings": self.settings.model_dump(exclude={"show_alpha"}),
        }
        before = self.answers.settings()
        if before and self.settings.seed is None:  # it was drawn when the file was begun
            seed = (before.get("settings") or {}).get("seed")
            self.settings = self.settings.model_copy(update={"seed": seed})
            made_with["settings"] = {**self.settings.model_dump(exclude={"show_alpha"})}
        known = {name: value for name, value in made_with.items() if name != "weights" or value}
        self.answers.refuse_others(known)  # of a hub id the weights may not be here yet
        self.made_with = made_with
        self.done = self.answers.answered(self.prompts)

    def run(self, load: Load, listener: Listener) -> int:
        """Answers the rows that have no answer yet; returns how many could not be answered.

        Args:
            load: gives the model and its tokenizer.
            listener: is told how far it is.

        Raises:
            LabError: when the model cannot be loaded or fails, or the file cannot be written.
        """
        from llmlab.chat.answering import Answering

        if self.settings.seed is None and self.settings.temperature > 0:
            seed = secrets.randbelow(LARGEST_SEED)
            self.settings = self.settings.model_copy(update={"seed": seed})
            self.made_with["settings"]["seed"] = seed
        model, tokenizer = load()
        answering = Answering(model, tokenizer, self.settings, self.batch.batch_size)
        answering.refuse(self.prompts)
        self.answers.note({**self.made_with, "weights": known_weights(self.model)})
        return answering.answer(itertools.islice(self.prompts, self.done, None), self.answers, listener)
