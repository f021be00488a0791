"""A model in memory that answers, which may be the backbone of a dual head."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmlab.config.evaluation import EvaluationConfig
from llmlab.config.loading import LoadOptions
from llmlab.evaluation.measures.judged import Judge, judge_by
from llmlab.models.dual_head import LabDualHeadForCausalLM
from llmlab.models.load import is_backbone_of
from llmlab.models.loading import load_for_use
from llmlab.models.typed import LanguageModel


@dataclass
class Loaded:
    """A model that is in memory; `plain` where it is the backbone of a dual head."""

    name: str
    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    plain: bool = False

    def answering(self) -> AbstractContextManager[None]:
        """Returns the context in which it answers."""
        if not self.plain:
            return nullcontext()
        assert isinstance(self.model, LabDualHeadForCausalLM)
        return self.model.backbone_alone()


def load(name: str, before: Loaded | None, config: EvaluationConfig) -> Loaded:
    """Returns a model in memory; the backbone of a dual head that is there is not loaded a second time."""
    if before and is_backbone_of(name, before.model):
        return replace(before, name=name, plain=True)
    options = LoadOptions(load_in=config.load_in, device=config.device, dtype=config.dtype)
    return Loaded(name, *load_for_use(name, options))


@lru_cache(maxsize=1)
def _judge(name: str, load_in: Any, device: Any, dtype: Any) -> Judge:
    return judge_by(*load_for_use(name, LoadOptions(load_in=load_in, device=device, dtype=dtype)))


def judge_of(name: str, config: EvaluationConfig) -> Judge:
    """Returns the judge that a model is; it is loaded once."""
    return _judge(name, config.load_in, config.device, config.dtype)
