"""Figures of a model on any source, in memory: what is measured follows from the shape of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from llmlab.config import SourceConfig
from llmlab.config.evaluation import Task
from llmlab.data.prompts import prompt_shapes
from llmlab.evaluation.figures import Figures, figures_of
from llmlab.evaluation.items import SHAPES, read_rows
from llmlab.evaluation.measures import Reader, Reward, choose
from llmlab.models.typed import LanguageModel


@dataclass
class Measured:
    """The figures of one source.

    Attributes:
        name: of the source.
        rows: measured.
        found: the figures with their intervals.
        notes: what was left out.
        answers: of the model, one a row, window or pair.
        reading: of texts and conversations, how they were read: `window` and `stride` in tokens, `tokens`
            there are, and the `share_read` of them.
    """

    name: str
    rows: int
    found: Figures
    answers: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    reading: dict[str, float] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """The value of each figure."""
        return {name: figure.value for name, figure in self.found.figures.items()}


@torch.no_grad()
def measure(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    source: SourceConfig,
    *,
    by: Literal["score", "generate"] = "score",
    batch_size: int = 16,
    max_length: int | None = None,
    stride: int | None = None,
    reward: Reward | None = None,
    max_new_tokens: int | None = None,
) -> Measured:
    """Returns the figures of a model on a source.

    Classification: accuracy, macro F1 and the majority's accuracy, by score also calibration. Text: loss and
        bits per byte, over all of it. Conversations: loss of the assistant's tokens, or with `by` "generate"
        how often the answer is the right one to the letter. Pairs: preference accuracy.

    Args:
        model: to measure.
        tokenizer: its own.
        source: whose rows are all measured (`max_rows` limits them).
        by: "score" or "generate", for classifications and conversations.
        batch_size: rows at a time.
        max_length: tokens of a text or conversation that are read at once, at most as many as the model's
            context; left out, 1,024. Longer conversations are cut; longer texts are read in windows of this
            length.
        stride: tokens from one window of a text to the next; left out, half a window. Every token but a
            text's first is predicted once, from at least `max_length - stride` tokens before it, or from all
            there are.
        reward: of generated answers, in the place of all that.
        max_new_tokens: of a generated answer; left out, as many as the longest reference has, 256 with a
            reward.

    Raises:
        LabError: when the source cannot be read, no row is left, `by` "generate" has no right answers to
            compare with, or a length is given for rows that are not read in that way.
    """
    task = Task(source=source, by=by, max_length=max_length, stride=stride, max_new_tokens=max_new_tokens)
    rows, notes = read_rows(task, prompt_shapes(source) if reward else SHAPES)
    was_training = model.training
    model.eval()
    chosen = choose(task, Reader(model, tokenizer, reward=reward), rows)
    prepared = chosen.prepare(rows)
    answers: list[dict[str, Any]] = []
    for batch in chosen.batches(prepared.items, batch_size):
        for item, one in zip(batch, chosen.answer(batch), strict=True):
            known = {"row": item.row, "part": item.part, "group": item.group, "reference": item.reference}
            answers.append({**known, **one})
    model.train(was_training)
    return Measured(
        source.short(), len(rows), figures_of(chosen.name, answers), answers, notes, prepared.reading
    )
