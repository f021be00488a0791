"""Suites: named lists of tasks. Three ship; one's own is a JSON or YAML file.

{"title": "our mails", "tasks": [{"source": "mails.jsonl"}, {"source": "faq.jsonl", "by": "generate"}]}
"""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from llmlab.config.base import as_typed, validate
from llmlab.config.evaluation import STANDARD, EvaluationConfig, Suite, Task
from llmlab.config.harness import HARNESS_OPTIONS
from llmlab.config.judges import REFERENCE
from llmlab.config.loader import MAX_BYTES, is_yaml
from llmlab.config.sources import SourceConfig
from llmlab.config.training import RunOptions
from llmlab.errors import LabError
from llmlab.files import BadFile, read_json

QUESTIONS = Task(source=SourceConfig(name="llmlab:questions"), by="generate")
PASSAGES = Task(
    source=SourceConfig(name="llmlab:passages", split="test"),
    by="generate",
    judge=REFERENCE,
    group_by="place",
)
MAILS = Task(source=SourceConfig(name="llmlab:spam-mails", split="test"))
# chapters that base training with an `eval_fraction` of 0.05, as the quickstart's, has not read
GENERAL_TEXT = Task(source=SourceConfig(name="llmlab:moby-dick"), held_out=0.05)


def _few(task: Task, rows: int) -> Task:
    return task.model_copy(update={"source": task.source.model_copy(update={"max_rows": rows})})


ROWS = (".jsonl", ".csv", ".parquet", ".arrow", ".txt", ".md", ".gz", ".zst")  # endings of files of rows

MOST_FILES = 500  # that are looked at

SUITES = {
    STANDARD: Suite(
        title="a first look: arithmetic questions, mails, prose",
        tasks=[_few(QUESTIONS, 200), _few(MAILS, 200), GENERAL_TEXT],
    ),
    "questions": Suite(title="400 small exact tasks, answered in words or numbers", tasks=[QUESTIONS]),
    "mails": Suite(title="spam or not: a classification, with its calibration", tasks=[MAILS]),
    "passages": Suite(title="questions on passages: answered from them, or made up", tasks=[PASSAGES]),
    "text": Suite(title="loss and bits per byte on held-out chapters of Moby-Dick", tasks=[GENERAL_TEXT]),
}


def tasks_of(config: EvaluationConfig) -> list[Task]:
    """Returns what an evaluation measures: the tasks of its suite, then its own sources.

    Raises:
        LabError: when there is no such suite, or its file is no suite.
    """
    name = config.suite or ("" if config.datasets or config.harness else STANDARD)
    return [*(find_suite(name).tasks if name else []), *config.own_tasks()]


def watched_tasks(config: RunOptions) -> list[Task]:
    """Returns what the model of a run is evaluated on while it learns: the tasks of its suite, or its source
    as a task, with the rows that the run wants of each; none where it names no suite.

    Raises:
        LabError: when there is no such suite, or its file is no suite.
    """
    name, rows = config.evaluation_suite, config.evaluation_rows
    if not name:
        return []
    tasks = [Task(source=SourceConfig(name=name))] if is_source(name) else _tasks_alone(name)
    if rows is None:
        return tasks
    return [_few(task, min(rows, task.source.max_rows or rows)) for task in tasks]


def _tasks_alone(name: str) -> list[Task]:
    """Returns the tasks of a suite that a run can measure while it learns.

    Raises:
        LabError: when there is no such suite, or it names benchmarks.
    """
    suite = find_suite(name)
    if suite.harness:
        raise LabError(
            f"names benchmarks of lm-eval ({suite.harness[0]}), which no run measures while it learns",
            where=f"evaluation_suite {name}",
            remedy="name a suite of tasks alone; `llmlab evaluate` takes this one",
        )
    return suite.tasks


def is_source(name: str) -> bool:
    """Returns whether a name stands for rows and for no suite: `llmlab:spam-mails`, a file of rows, a folder,
    or OWNER/NAME of the hub.
    """
    if name in SUITES or PurePath(name).suffix in (".json", ".yaml", ".yml"):
        return False
    rows = name.startswith("llmlab:") or PurePath(name).suffix in ROWS or Path(name).is_dir()
    return rows or bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).is_file())


def suite_files(folder: Path = Path()) -> list[str]:
    """Returns the files of a folder, and of `suites/` in it, that hold a suite by their first bytes."""
    found = []
    for path in sorted([*folder.glob("*.*"), *folder.glob("suites/*.*")])[:MOST_FILES]:
        if path.suffix in (".json", ".yaml", ".yml") and path.is_file():
            with suppress(OSError), open(path, "rb") as file:
                if re.search(rb'(?m)^\s*\{?\s*"?tasks"?\s*:|"tasks"\s*:\s*\[', file.read(2000)):
                    found.append(str(path))
    return found


def with_benchmarks(config: EvaluationConfig) -> EvaluationConfig:
    """Returns a config whose benchmarks are those of its suite, then its own; what it does not say of how
    they are asked is as the suite says.

    Raises:
        LabError: when there is no such suite, or its file is no suite.
    """
    suite = find_suite(config.suite) if config.suite else None
    if suite is None or not suite.harness:
        return config
    not_said = [name for name in HARNESS_OPTIONS if any(getattr(config, name) is no for no in (None, False))]
    how = {name: getattr(suite, name) for name in not_said}
    return config.model_copy(update={"harness": [*dict.fromkeys([*suite.harness, *config.harness])], **how})


def find_suite(name: str) -> Suite:
    """Returns a suite by its name, or from a file.

    Raises:
        LabError: when there is none.
    """
    if name in SUITES:
        return SUITES[name]
    path = Path(name)
    if path.suffix not in (".json", ".yaml", ".yml") and not path.is_file():
        near = difflib.get_close_matches(name, SUITES, n=1)
        raise LabError(
            f"there is no suite {name!r}",
            remedy=f"did you mean {near[0]!r}?"
            if near
            else f"use one of {', '.join(SUITES)}, or a JSON or YAML file of your own",
        )
    data = read_data(path, "suite")
    if is_yaml(path) and isinstance(data, dict):
        data = as_typed(Suite, data)
    if not isinstance(data, dict):
        raise LabError(
            "a suite is an object with `tasks`",
            where=name,
            remedy='write {"tasks": [{"source": "rows.jsonl"}]}',
        )
    return validate(Suite, data, where=name)


def read_data(path: Path, what: str) -> Any:
    """Returns the data of a JSON file or, by its name, YAML.

    Raises:
        LabError: when there is none, or it is damaged.
    """
    try:
        if is_yaml(path):
            from llmlab.config.yaml_file import read_yaml  # PyYAML costs time

            return read_yaml(path).data
        return read_json(path, largest=MAX_BYTES)
    except FileNotFoundError:
        raise LabError(f"there is no such {what} file", where=str(path)) from None
    except BadFile as error:
        raise LabError(str(error), where=str(path), remedy="it may be truncated or mistyped there") from None
    except OSError as error:
        raise LabError(f"cannot be read ({error.strerror})", where=str(path)) from None
