"""Options of EleutherAI's harness (lm-eval), the engine of standard benchmarks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from llmlab.config.base import LabBaseConfig
from llmlab.config.options import LARGEST, option

HARNESS_OPTIONS = ("few_shot", "chat_template", "limit", "tasks_folder")  # beside the tasks themselves


def _split(value: Any) -> Any:
    """Returns the names of a text, in which commas stand between them."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class HarnessOptions(LabBaseConfig):
    """Which tasks of the harness a model is measured on, and how they are asked."""

    harness: Annotated[list[str], BeforeValidator(_split)] = option(
        list,
        "Benchmarks",
        "Tasks or groups of EleutherAI's harness (the package lm-eval), by name: `arc_easy,hellaswag`.",
    )
    few_shot: int | None = option(
        None,
        "Few-shot examples",
        "Solved examples before each question of a benchmark; left out, as many as the task says.",
        unit="examples",
        advanced=True,
        ge=0,
        le=1000,
    )
    chat_template: bool = option(
        False,
        "Chat template",
        "Benchmarks are asked as a conversation, by the chat template of the model's tokenizer.",
        advanced=True,
    )
    limit: int | None = option(
        None,
        "Rows of a benchmark",
        "The first so many of each task; left out, all of them.",
        unit="rows",
        advanced=True,
        ge=1,
        le=LARGEST,
    )
    tasks_folder: str | None = option(
        None,
        "Folder of tasks",
        "Benchmarks of your own: YAML files as lm-eval reads them.",
        advanced=True,
        min_length=1,
    )

    @model_validator(mode="after")
    def _check_harness(self) -> HarnessOptions:
        names = self.harness
        if any(not name.strip() for name in names):
            raise ValueError("`harness` names a task without a name")
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"`harness` names {twice!r} twice")
        fields = type(self).model_fields
        given = [name for name in HARNESS_OPTIONS if getattr(self, name) != fields[name].default]
        if given and not names:
            raise ValueError(f"`{given[0]}` is of benchmarks, and `harness` names none")
        return self
