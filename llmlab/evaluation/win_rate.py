"""Answers scored by a reward: the mean of one model, and its win rate against another on the same prompts."""

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

Reward = Callable[[list[Any], list[str], list[str]], list[float]]  # prompts, answers, references -> values


@dataclass
class Candidate:
    """A model whose answers are scored.

    Attributes:
        name: as it is shown.
        model: that answers.
        tokenizer: of the model.
        plain: of a dual head, whether its backbone alone answers.
    """

    name: str
    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    plain: bool = False

    def answers(self, rows: list[Row], batch_size: int, max_new_tokens: int) -> list[str]:
        """Returns the greedy answer to each row's prompt."""
        questions = [("", prompt_of(row), "") for row in rows]
        with _alone(self.model) if self.plain else nullcontext():
            answered = answer(
                self.model, self.tokenizer, questions, batch_size=batch_size, max_new_tokens=max_new_tokens
            )
        return [prediction for *_, prediction in answered.rows]


def _alone(model: PreTrainedModel) -> AbstractContextManager[None]:
    assert isinstance(model, LabDualHeadForCausalLM)
    return model.backbone_alone()


def load_candidates(name: str, against: str | None, options: LoadOptions) -> list[Candidate]:
    """Returns a model and, where one is named, the model it is compared with; the backbone of a dual head is
    not loaded a second time.
    """
    model, tokenizer = load_for_use(name, options)
    candidates = [Candidate(name, model, tokenizer)]
    if against and is_backbone_of(against, model):
        candidates.append(Candidate(against, model, tokenizer, plain=True))
    elif against:
        candidates.append(Candidate(against, *load_for_use(against, options)))
    return candidates


def score_with_reward(
    candidates: list[Candidate],
    source: SourceConfig,
    reward: Reward,
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
) -> Measured:
    """Returns the mean reward of each model on the prompts of a source; of two also the win rate of the first
    one and the share of ties.

    Args:
        candidates: one model, or two.
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
    references = [row.get("answer") or row.get("completion") or row.get("chosen") or "" for row in rows]
    values = [
        reward(prompts, candidate.answers(rows, batch_size, max_new_tokens), references)
        for candidate in candidates
    ]
    figures = {"reward": sum(values[0]) / len(rows)}
    if len(values) > 1:
        figures["reward_of_the_other"] = sum(values[1]) / len(rows)
        figures["win_rate"] = sum(one > other for one, other in zip(*values, strict=True)) / len(rows)
        figures["ties"] = sum(one == other for one, other in zip(*values, strict=True)) / len(rows)
    return Measured(source.short(), len(rows), figures, notes=source_rows.notes())
