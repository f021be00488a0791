"""What all measures share: who answers, the items of a task, batches of about one length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from llmlab.config.evaluation import Task
from llmlab.evaluation.answers import Sampling
from llmlab.evaluation.items import Item, TaskRow
from llmlab.evaluation.judges import Judge
from llmlab.models.typed import LanguageModel

Reward = Callable[[list[Any], list[str], list[str]], list[float]]  # prompts, answers, references -> values
Answer = dict[str, Any]


@dataclass(frozen=True)
class Reader:
    """Who answers, and how.

    Attributes:
        model: in evaluation mode.
        tokenizer: its own.
        sampling: of generated answers.
        repeats: answers a prompt.
        reward: of answers, where rewards are named.
        judge: of answers, where one is named.
        judge_tokens: that a served judge may answer with.
    """

    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling = field(default_factory=Sampling)
    repeats: int = 1
    reward: Reward | None = None
    judge: Judge | None = None
    judge_tokens: int = 0


@dataclass(frozen=True)
class Prepared:
    """The items of a task, and how its rows are read: `window`, `stride`, `tokens`, `share_read`."""

    items: list[Item]
    reading: dict[str, float]


class Measure(ABC):
    """One way to measure rows."""

    name: ClassVar[str]

    def __init__(self, task: Task, reader: Reader):
        self.task, self.reader = task, reader
        self.model, self.tokenizer = reader.model, reader.tokenizer

    @abstractmethod
    def prepare(self, rows: Sequence[TaskRow]) -> Prepared:
        """Returns the items of rows.

        Raises:
            LabError: when a row cannot be read so.
        """

    @abstractmethod
    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Returns what the model makes of a batch: `answer`, `score`, `log_prob`, `tokens` and more, each."""

    def batches(self, items: Sequence[Item], batch_size: int) -> Iterator[list[Item]]:
        """Yields the items in batches of about one length."""
        ordered = sorted(items, key=self.order)
        for start in range(0, len(ordered), batch_size):
            yield ordered[start : start + batch_size]

    def order(self, item: Item) -> Any:
        """Returns by what items are sorted."""
        return item.length
