"""Rewards of a config as the functions that TRL's trainers call;
a fault in one is told with its name and the answer.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from llmlab.config.rewards import RewardSource
from llmlab.data.schemas import user
from llmlab.data.tokenizer import load_tokenizer
from llmlab.errors import LabError
from llmlab.models.load import load_scorer
from llmlab.models.resolve import resolve_model
from llmlab.models.typed import moved
from llmlab.rewards import BUILT_IN, Answer
from llmlab.rewards.model import scores
from llmlab.trust import TRUSTED

# (prompts, texts of the answers, columns of the rows) -> one number an answer
Judge = Callable[[list[Any], list[str], dict[str, Any]], list[float]]


def reward_function(source: RewardSource, device: str) -> Callable[..., list[float]]:
    """Returns the function of a reward: (prompts, completions, **columns) -> one number a completion.

    Raises:
        LabError: when a reward model does not load, or a function of one's own is not trusted or is not
            there.
    """
    if source.kind == "built-in":
        judge = _built_in(source)
    elif source.kind == "function":
        judge = _own(source)
    else:
        judge = _scored(source, device)

    def checked(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        texts = [_text(completion) for completion in completions]
        try:
            values = judge(prompts, texts, columns)
        except LabError:
            raise
        except Exception as error:
            raise _fault(source, f"failed ({type(error).__name__}: {error})", texts[:1]) from None
        if not isinstance(values, (list, tuple)) or len(values) != len(texts):
            count = len(values) if isinstance(values, (list, tuple)) else type(values).__name__
            raise _fault(source, f"returned {count} values for {len(texts)} answers", [])
        for value, text in zip(values, texts, strict=True):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise _fault(source, f"gave {value!r}, which is not a finite number", [text])
        return [float(value) for value in values]

    checked.__name__ = source.name.split("/")[-1].split(":")[-1]
    return checked


def weighted(
    sources: list[RewardSource], device: str
) -> Callable[[list[Any], list[str], list[str]], list[float]]:
    """Returns the weighted sum of rewards as a function of prompts, answers and right answers.

    Raises:
        LabError: as `reward_function`.
    """
    functions = [(source.weight, reward_function(source, device)) for source in sources]

    def total(prompts: list[Any], answers: list[str], references: list[str]) -> list[float]:
        columns = [
            [weight * value for value in function(prompts, answers, answer=references)]
            for weight, function in functions
        ]
        return [sum(values) for values in zip(*columns, strict=True)]

    return total


def refuse_untrusted(sources: Iterable[RewardSource]) -> None:
    """Looks for code of one's own that nobody agreed to run, before anything is loaded.

    Raises:
        LabError: where there is some.
    """
    for name in untrusted(sources):
        raise LabError(
            f"the reward {name!r} is code of your own, which runs only if you trust it by name",
            remedy=f"add --trust {name}",
        )


def untrusted(sources: Iterable[RewardSource]) -> list[str]:
    """Returns the names of rewards that are code which nobody agreed to run."""
    return [source.name for source in sources if source.kind == "function" and source.name not in TRUSTED]


def _built_in(source: RewardSource) -> Judge:
    function = BUILT_IN[source.name]

    def rewards(prompts: list[Any], texts: list[str], columns: dict[str, Any]) -> list[float]:
        references = columns.get("answer") or [""] * len(texts)
        return [
            function(Answer(text, _text(prompt), answer or "", source.setting or ""))
            for text, prompt, answer in zip(texts, prompts, references, strict=True)
        ]

    return rewards


def _own(source: RewardSource) -> Judge:
    if source.name not in TRUSTED:
        raise LabError(f"the reward {source.name!r} is not trusted", remedy=f"add --trust {source.name}")
    module, _, name = source.name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise LabError(
            f"the reward {source.name!r} cannot be imported ({error})",
            remedy="name a function as module:function",
        ) from None
    except Exception as error:
        raise LabError(
            f"the module of the reward {source.name!r} fails ({type(error).__name__}: {error})"
        ) from None
    finally:
        sys.path.pop(0)

    def rewards(prompts: list[Any], texts: list[str], columns: dict[str, Any]) -> Any:
        own = {
            key: value
            for key, value in columns.items()
            if isinstance(value, list) and len(value) == len(texts)
        }
        return function(prompts=[_text(prompt) for prompt in prompts], completions=texts, **own)

    return rewards


def _scored(source: RewardSource, device: str) -> Judge:
    ref = resolve_model(source.name)
    tokenizer = load_tokenizer(ref.where)
    model = moved(load_scorer(ref, pad=tokenizer.pad_token_id), device)
    model.eval()
    model.requires_grad_(False)

    def rewards(prompts: list[Any], texts: list[str], columns: dict[str, Any]) -> list[float]:
        turns = [
            [*(prompt if isinstance(prompt, list) else user(prompt)), {"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        return scores(model, tokenizer, turns)

    return rewards


def _text(value: str | list[dict[str, str]]) -> str:
    return value[-1]["content"] if isinstance(value, list) else value


def _fault(source: RewardSource, what: str, answers: list[str]) -> LabError:
    shown = f"; the answer was {answers[0][:80]!r}" if answers else ""
    return LabError(
        f"the reward {source.name!r} {what}{shown}",
        exit_code=1,
        remedy="fix it; the run resumes from its last checkpoint",
    )
