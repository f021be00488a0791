"""Answers judged by a reward: the mean of one model,
and how often it wins against another on the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmlab.config import SourceConfig
from llmlab.config.loading import LoadOptions
from llmlab.data.pipeline import SourceRows
from llmlab.data.prompts import prompt_of, prompt_shapes
from llmlab.data.schemas import Row
from llmlab.errors import LabError
from llmlab.evaluation.answers import answer
from llmlab.evaluation.sources import Measured
from llmlab.models.dual_head import LabDualHeadForCausalLM
from llmlab.models.load import is_backbone_of
from llmlab.models.loading import load_for_use
from llmlab.models.typed import LanguageModel

Reward = Callable[[list[Any], list[str], list[str]], list[float]]  # prompts, answers, right answers -> values


@dataclass
class Speaker:
    """Who answers.

    Attributes:
        name: shown.
        model: of it.
        tokenizer: its own.
        plain: of a dual head, whether its backbone alone answers.
    """

    name: str
    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    plain: bool = False

    def answers(self, rows: list[Row], batch_size: int, max_new_tokens: int) -> list[str]:
        """Returns the greedy answer to each row's prompt."""
        asked = [("", prompt_of(row), "") for row in rows]
        with _alone(self.model) if self.plain else nullcontext():
            answered = answer(
                self.model, self.tokenizer, asked, batch_size=batch_size, max_new_tokens=max_new_tokens
            )
        return [prediction for *_, prediction in answered.rows]


def _alone(model: PreTrainedModel) -> AbstractContextManager[None]:
    assert isinstance(model, LabDualHeadForCausalLM)
    return model.backbone_alone()


def load_speakers(name: str, against: str | None, options: LoadOptions) -> list[Speaker]:
    """Returns a model and, where one is named, the model it is compared with; the backbone of a dual head is
    not loaded a second time.
    """
    model, tokenizer = load_for_use(name, options)
    speakers = [Speaker(name, model, tokenizer)]
    if against and is_backbone_of(against, model):
        speakers.append(Speaker(against, model, tokenizer, plain=True))
    elif against:
        speakers.append(Speaker(against, *load_for_use(against, options)))
    return speakers


def judged(
    speakers: list[Speaker],
    source: SourceConfig,
    reward: Reward,
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
) -> Measured:
    """Returns the mean reward of each model on the prompts of a source; of two also how often the first one
    wins and ties.

    Args:
        speakers: one model, or two.
        source: whose rows have prompts of any shape.
        reward: of the answers.
        batch_size: prompts at a time.
        max_new_tokens: of an answer.

    Raises:
        LabError: when the source has no prompts.
    """
    source_rows = SourceRows.of(source, prompt_shapes(source))
    rows = source_rows.first(source.max_rows)
    if not rows:
        raise LabError("has no prompts to answer", where=source.name, remedy="; ".join(source_rows.notes()))
    prompts = [prompt_of(row) for row in rows]
    right = [row.get("answer") or row.get("completion") or row.get("chosen") or "" for row in rows]
    values = [
        reward(prompts, speaker.answers(rows, batch_size, max_new_tokens), right) for speaker in speakers
    ]
    figures = {"reward": sum(values[0]) / len(rows)}
    if len(values) > 1:
        figures["reward_of_the_other"] = sum(values[1]) / len(rows)
        figures["win_rate"] = sum(one > other for one, other in zip(*values, strict=True)) / len(rows)
        figures["ties"] = sum(one == other for one, other in zip(*values, strict=True)) / len(rows)
    return Measured(source.short(), len(rows), figures, notes=source_rows.notes())
