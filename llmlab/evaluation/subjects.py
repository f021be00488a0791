"""Which models an evaluation measures, and on what. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmlab.config.evaluation import PARENT, EvaluationConfig, Task
from llmlab.config.harness import HarnessOptions
from llmlab.config.judges import is_model
from llmlab.config.sources import short_names
from llmlab.config.suites import GENERAL_TEXT, tasks_of
from llmlab.data.sources import fingerprint
from llmlab.errors import LabError
from llmlab.evaluation.benchmarks import folder_fingerprint
from llmlab.files import in_home
from llmlab.models.identity import base_of, weights_fingerprint
from llmlab.models.resolve import check_model
from llmlab.runs.folder import MODELS, RUNS, RunFolder, find_model

GENERAL = "general text"
JUDGE = "judge"  # the role of a judge whose agreement with labels is measured
HARNESS = tuple(HarnessOptions.model_fields)
# options that change no answer: the same evaluation goes on whatever they are
NEWER = ("judge_check", "judge_tokens")  # options that evaluations before them did not have
OF_NO_EFFECT = ("name", "output_dir", "csv", "gate", "batch_size", "device", "kind", "schema_version")


@dataclass(frozen=True)
class NamedTask:
    """A task with the name of its source, different from those of the other tasks."""

    name: str
    task: Task


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        name: as the config has it.
        role: "model", "against" or, for forgetting and the gate, "parent".
        weights: hash of them.
        tasks: that it is measured on.
        benchmarks: tasks of lm-eval that it is measured on.
    """

    name: str
    role: str
    weights: str
    tasks: tuple[NamedTask, ...]
    benchmarks: tuple[str, ...] = ()

    @property
    def asked(self) -> set[tuple[str, str]]:
        """All that it is measured on, as (model, task)."""
        return {(self.name, one.name) for one in self.tasks} | {(self.name, one) for one in self.benchmarks}

    def to_json(self) -> dict[str, Any]:
        """Returns it for the record."""
        where = find_model(self.name)
        return {"name": self.name, "role": self.role, "path": where, "weights": self.weights}


def named_tasks(config: EvaluationConfig) -> list[NamedTask]:
    """Returns what is measured, each task under a name of its own.

    Raises:
        LabError: when the suite cannot be read.
    """
    tasks = tasks_of(config)
    names = short_names([task.source for task in tasks])
    return [NamedTask(name, task) for name, task in zip(names, tasks, strict=True)]


def subjects_of(config: EvaluationConfig, gate_names: Collection[str] = ()) -> list[Subject]:
    """Returns the models that are measured, the evaluated one first.

    Args:
        config: of the evaluation.
        gate_names: models that the gate compares with: "parent", "against".

    Raises:
        LabError: when there is no such model, or one that was asked for has no parent.
    """
    check_model(config.model, "evaluation", ask=False)
    tasks = tuple(named_tasks(config))
    for judge in {one.task.judge for one in tasks if one.task.judge and is_model(one.task.judge)}:
        check_model(judge, "evaluation", ask=False)
    parent = parent_of(config.model)
    wanted = config.against == PARENT or PARENT in gate_names
    if wanted and not parent:
        raise LabError(
            "no parent is known of this model",
            where=config.model,
            remedy="name the other model: --against NAME",
        )
    if "against" in gate_names and not config.against:
        raise LabError("the gate compares with `against`, and none is named", remedy="add --against NAME")
    against = parent if config.against == PARENT else config.against
    general = NamedTask(GENERAL, GENERAL_TEXT)
    forgets = config.forgetting and bool(parent) and _is_here(parent) and not _has_general_text(tasks)
    benchmarks = tuple(config.harness)
    found = [Subject(config.model, "model", "", (*tasks, *((general,) if forgets else ())), benchmarks)]
    if against:
        both = forgets and _same(against, parent)
        found.append(Subject(against, "against", "", (*tasks, *((general,) if both else ())), benchmarks))
    if parent and not (against and _same(against, parent)) and (PARENT in gate_names or forgets):
        whole, asked = (tasks, benchmarks) if PARENT in gate_names else ((), ())
        found.append(Subject(parent, PARENT, "", (*whole, *((general,) if forgets else ())), asked))
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise LabError("a model is compared with itself", where=names[-1], remedy="name another one")
    for one in found[1:]:
        check_model(one.name, "evaluation", ask=False)
    return [replace(one, weights=weights_fingerprint(one.name)) for one in found]


def _is_here(name: str) -> bool:
    """Returns whether a model is on this machine and loads as one that writes."""
    try:
        return isinstance(check_model(name, "evaluation", ask=False), Path)
    except LabError:
        return False


def _has_general_text(tasks: tuple[NamedTask, ...]) -> bool:
    return any(one.task.source == GENERAL_TEXT.source for one in tasks)


def _same(one: str, other: str) -> bool:
    """Returns whether two names stand for one model."""
    return Path(find_model(one)).absolute() == Path(find_model(other)).absolute()


def parent_of(name: str) -> str:
    """Returns what a model was trained from, by the record of its run or the base of an adapter; "" where
    nothing is known.
    """
    where = Path(find_model(name))
    for folder in (in_home(name), RUNS / name, where.parent):
        if isinstance(parent := RunFolder(folder).record.get("parent"), str) and parent:
            return parent
    return base_of(where) if where.is_dir() else ""


def asked_for(config: EvaluationConfig, subjects: list[Subject]) -> dict[str, Any]:
    """Returns all that the answers depend on: what is the same here is the same evaluation."""
    at_default = [name for name in NEWER if getattr(config, name) == _default(name)]
    left_out = (*OF_NO_EFFECT, *at_default)
    options = {name: value for name, value in config.to_json_dict().items() if name not in left_out}
    data = {
        one.name: {"task": one.task.to_json_dict(), "rows": fingerprint(one.task.source)}
        for one in named_tasks(config)
    }
    weights = {one.role: one.weights for one in subjects if one.role != PARENT}
    asked: dict[str, Any] = {"options": options, "tasks": data, "weights": weights}
    if not config.harness:  # what evaluations without benchmarks were asked before there were any
        asked["options"] = {name: value for name, value in options.items() if name not in HARNESS}
    elif config.tasks_folder:
        asked["tasks_folder"] = folder_fingerprint(config.tasks_folder)
    return asked


def _default(option: str) -> Any:
    return EvaluationConfig.model_fields[option].get_default(call_default_factory=True)


def evaluation_name(config: EvaluationConfig) -> str:
    """Returns what an evaluation is called where its config has no name: `sft-standard`, `sft-spam-mails`."""
    if config.name:
        return config.name
    path = Path(config.model)
    model = path.parent.name if path.name in MODELS and path.parent.name else path.stem or path.name
    on = [Path(config.suite).stem] if config.suite else []
    on += [*short_names(config.datasets), *config.harness] or ([] if config.suite else ["standard"])
    text = "-".join([model, *on])
    return re.sub(r"[^\w.+-]+", "-", text)[:80].strip("-.") or "evaluation"
