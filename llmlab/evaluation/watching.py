"""The evaluation of a model that learns: a suite between two updates of a run.

The engine of training is handed an `Evaluator` of this module and knows no more of it. The rows are read
before anything is loaded, what is asked is made ready once, and every evaluation writes a folder as `llmlab
evaluate` does: `evaluation.json` and `answers.jsonl`. Batches are the same ones whatever is there already and
however many processes share them: so neither a stop nor another number of processes changes a figure by a
bit.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab import __version__
from llmlab.config.evaluation import Task
from llmlab.config.judges import judged_by_reference
from llmlab.config.sources import short_names
from llmlab.config.suites import watched_tasks
from llmlab.config.training import TrainingConfig
from llmlab.config.watching import Better
from llmlab.data.prompts import prompt_shapes
from llmlab.data.sources import fingerprint
from llmlab.data.verdicts import VERDICTS
from llmlab.errors import LabError
from llmlab.evaluation.answers import Sampling
from llmlab.evaluation.computing import answers_of, line_of
from llmlab.evaluation.figures import is_whole
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.items import SHAPES, Item, TaskRow, read_rows
from llmlab.evaluation.judges import reference_judge
from llmlab.evaluation.measures import Answer, Measure, Reader, Reward, choose, measure_of
from llmlab.evaluation.results import result_of
from llmlab.runs.evaluations import SuiteFigure
from llmlab.runs.figures import BETTER
from llmlab.runs.workers import Workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmlab.config.rewards import RewardSource
    from llmlab.models.typed import LanguageModel

FORMAT = 1  # raised whenever the same tokens would be answered otherwise
SEED = 0  # of the intervals' resamples, as in `llmlab evaluate`
# what each measure gives, first what it is known by
GIVES = {
    "label": ("accuracy", "macro_f1", "majority"),
    "answer": ("exact_match",),
    "judged": (*VERDICTS, "exact_match"),
    "reward": ("reward",),
    "preference": ("preference_accuracy",),
    "text": ("loss", "bits_per_byte"),
    "conversation": ("loss",),
}
BY_SCORE = ("calibration_error", "brier_score", "label_loss")  # more of a classification
OF_TWO_HEADS = ("perplexity", "backbone_perplexity", "alpha", "gate_entropy")  # more of pairs


@dataclass(frozen=True)
class _Read:
    """A task whose rows were read."""

    name: str
    task: Task
    rows: list[TaskRow]
    notes: list[str]
    gives: tuple[str, ...]


@dataclass
class Evaluator:
    """Evaluates the model of a run on the suite of its config.

    Attributes:
        make_reward: rewards and a device -> a function of answers.
    """

    make_reward: Callable[[list[RewardSource], str], Reward]
    _read: dict[str, list[_Read]] = field(default_factory=dict)

    def metrics(self, config: TrainingConfig) -> Mapping[str, Better | None]:
        """Returns the figures that the suite of a run gives, as `source/figure`, and which values are better;
        None where they are neither good nor bad.

        Raises:
            LabError: when there is no such suite, or its rows cannot be read or not be measured in a run.
        """
        return {
            f"{one.name}/{figure}": BETTER.get(figure) for one in self._tasks(config) for figure in one.gives
        }

    def rows(self, config: TrainingConfig) -> dict[str, int]:
        """Returns how many rows of each task are measured, by its name.

        Raises:
            LabError: as `metrics`.
        """
        return {one.name: len(one.rows) for one in self._tasks(config)}

    def prepare(
        self, config: TrainingConfig, model: LanguageModel, tokenizer: PreTrainedTokenizerBase
    ) -> SuiteOfRun:
        """Returns the suite of a run made ready for its model.

        Raises:
            LabError: when this model cannot be measured on it.
        """
        tasks = []
        for one in self._tasks(config):
            rewards = one.task.rewards
            reward = self.make_reward(rewards, str(model.device)) if rewards else None
            judge = reference_judge(one.task.judge) if one.task.judge else None
            reader = Reader(model, tokenizer, Sampling(), reward=reward, judge=judge)
            measure = choose(one.task, reader, one.rows)
            prepared = measure.prepare(one.rows)
            tasks.append(
                _Ready.of(one, measure, prepared.items, prepared.reading, config.evaluation_batch_size)
            )
        options = {
            name: getattr(config, name)
            for name in ("evaluation_suite", "evaluation_rows", "evaluation_batch_size", "precision")
        }
        data = {
            one.name: {"task": one.task.to_json_dict(), "rows": fingerprint(one.task.source)}
            for one in self._tasks(config)
        }
        return SuiteOfRun(tuple(tasks), {"options": options, "tasks": data}, config.evaluation_batch_size)

    def _tasks(self, config: TrainingConfig) -> list[_Read]:
        """Returns the tasks of a run's suite with their rows, which are read once."""
        key = f"{config.kind} {config.evaluation_suite} {config.evaluation_rows}"
        if key not in self._read:
            tasks = watched_tasks(config)
            names = short_names([task.source for task in tasks])
            pairs = zip(names, tasks, strict=True)
            self._read[key] = [_read_task(name, task, config.kind) for name, task in pairs]
        return self._read[key]


def _read_task(name: str, task: Task, kind: str) -> _Read:
    """Returns a task with its rows.

    Raises:
        LabError: when they cannot be read, or not be measured in a run of this kind.
    """
    others = [reward.name for reward in task.rewards if reward.kind == "model"]
    if others or (task.judge and judged_by_reference(task.judge) is None):
        option = f"`rewards` {others[0]!r}" if others else f"`judge` {task.judge!r}"
        raise LabError(
            f"{option} is another model, which would stand in the memory of the run",
            where=f"evaluation_suite, task {name}",
            remedy="leave that task out of the suite of a run; `llmlab evaluate` takes it",
        )
    rows, notes = read_rows(task, prompt_shapes(task.source) if task.rewards else SHAPES)
    measure = measure_of(task, rows, rewarded=bool(task.rewards)).name
    gives = GIVES[measure]
    if measure == "label" and task.by == "score":
        gives += BY_SCORE
    if measure == "preference" and kind == "dual_head":
        gives += OF_TWO_HEADS
    return _Read(name, task, rows, notes, gives)


@dataclass(frozen=True)
class _Ready:
    """A task that is ready for a model: its batches, of items that differ, and all items by what they ask."""

    name: str
    measure: Measure
    batches: tuple[list[Item], ...]
    same: dict[str, list[Item]]
    about: dict[str, Any]

    @classmethod
    def of(
        cls, read: _Read, measure: Measure, items: list[Item], reading: dict[str, float], batch_size: int
    ) -> _Ready:
        same: dict[str, list[Item]] = {}  # several rows may ask the same
        for item in items:
            same.setdefault(item.key(measure.name, {}), []).append(item)
        batches = tuple(measure.batches([alike[0] for alike in same.values()], batch_size))
        about = {"measure": measure.name, "rows": len(read.rows), "reading": reading, "notes": read.notes}
        return cls(read.name, measure, batches, same, about)

    @property
    def answers(self) -> int:
        """Answers to all its items."""
        return sum(map(len, self.same.values()))

    def items_of(self, batch: Sequence[Item]) -> Iterator[tuple[Item, list[Item]]]:
        """Yields each item of a batch, and all items that ask the same."""
        for item in batch:
            yield item, self.same[item.key(self.measure.name, {})]


@dataclass(frozen=True)
class SuiteOfRun:
    """A suite that is ready for the model of a run.

    Attributes:
        tasks: of it.
        asked: all that the answers depend on, beside the weights.
        batch_size: answers at a time.
    """

    tasks: tuple[_Ready, ...]
    asked: dict[str, Any]
    batch_size: int

    @property
    def answers(self) -> int:
        """Answers that one evaluation takes."""
        return sum(one.answers for one in self.tasks)

    def measure(
        self, folder: Path, model: str, workers: Workers, tell: Callable[[str, int, int], None]
    ) -> Sequence[SuiteFigure]:
        """Returns the figures of the model as it is now; every process has to call this.

        Args:
            folder: for the answers and the record; batches that are complete there are not answered again.
            model: its name in the record.
            workers: that share the batches.
            tell: takes source, answers that are there, all of them.

        Raises:
            LabError: when the model fails at it, or the answers cannot be written.
        """
        began = time.perf_counter()
        store = _Store(EvaluationFolder(folder), model, self.asked)
        workers.from_first(store.begin)
        for task in self.tasks:
            self._answer(task, store, workers, tell)

        def end() -> list[SuiteFigure]:
            return store.end([self._about(task, model) for task in self.tasks], time.perf_counter() - began)

        return workers.from_first(end)

    def _answer(
        self, task: _Ready, store: _Store, workers: Workers, tell: Callable[[str, int, int], None]
    ) -> None:
        """Computes the batches that are missing, one a process at a time."""
        missing = workers.from_first(lambda: store.missing(task))
        left = sum(len(alike) for n in missing for _, alike in task.items_of(task.batches[n]))
        done = task.answers - left
        full = (
            f"set `evaluation_batch_size` below {self.batch_size}; the run resumes from its last checkpoint"
        )
        tell(task.name, done, task.answers)
        for start in range(0, len(missing), workers.processes):
            at_once = missing[start : start + workers.processes]
            own = at_once[
                workers.process : workers.process + 1
            ]  # none where fewer batches than processes are left
            lines = workers.together(partial(_lines, task, own, store, full))
            workers.from_first(partial(store.folder.append, lines))
            done += len(lines)
            tell(task.name, done, task.answers)

    def _about(self, task: _Ready, model: str) -> dict[str, Any]:
        return {"source": task.name, "model": model, "role": "model", **task.about}


def _lines(task: _Ready, batches: list[int], store: _Store, full: str) -> list[Answer]:
    """Returns the answers to batches of a task as they stand in the file; `full` is said where the memory
    does not hold one.
    """
    lines: list[Answer] = []
    for batch in (task.batches[number] for number in batches):
        answers = answers_of(task.measure, batch, model=store.model, full=full)
        for (item, alike), answer in zip(task.items_of(batch), answers, strict=True):
            key = item.key(task.measure.name, store.identity)
            lines += [line_of(store.model, task.name, task.measure.name, one, key, answer) for one in alike]
    return lines


class _Store:
    """The folder of one evaluation; the first process alone reads and writes it.

    Args:
        folder: of the evaluation.
        model: its name.
        asked: all that the answers depend on, beside the weights.
    """

    def __init__(self, folder: EvaluationFolder, model: str, asked: dict[str, Any]):
        self.folder, self.model = folder, model
        self.asked = {**asked, "weights": {"model": model}}
        self.identity = {"format": FORMAT, "weights": model}

    def begin(self) -> None:
        """Takes the answers that are there up again, where the same was asked; else begins anew."""
        if self.folder.record.get("asked") != self.asked:
            shutil.rmtree(self.folder.path, ignore_errors=True)
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(
                f"cannot be created ({error.strerror})", where=str(self.folder.path), exit_code=1
            ) from None
        self.folder.drop_torn_line()
        self.folder.write(self._record("running"))

    def missing(self, task: _Ready) -> list[int]:
        """Returns the numbers of the batches that are not answered in whole."""
        there = {
            (one["row"], one.get("part") or 0): one
            for one in self.folder.answers()
            if one["source"] == task.name and is_whole(task.measure.name, one)
        }
        return [
            number
            for number, batch in enumerate(task.batches)
            if any((one.row, one.part) not in there for _, alike in task.items_of(batch) for one in alike)
        ]

    def end(self, sources: list[dict[str, Any]], seconds: float) -> list[SuiteFigure]:
        """Writes what the answers say into the record, and returns the figures."""
        answers: dict[str, dict[tuple[int, int], Answer]] = {}
        for one in self.folder.answers():  # the last one of a place counts
            answers.setdefault(one["source"], {})[one["row"], one.get("part") or 0] = one
        results = [result_of(about, [*answers.get(about["source"], {}).values()], SEED) for about in sources]
        record = {**self._record("done"), "sources": sources, "results": results}
        self.folder.write({**record, "seconds": round(seconds, 2), "differences": [], "forgetting": None})
        return [
            SuiteFigure(f"{one['source']}/{name}", entry["value"], entry["low"], entry["high"])
            for one in results
            for name, entry in one["figures"].items()
        ]

    def _record(self, status: str) -> dict[str, Any]:
        before = self.folder.record
        return {
            "name": self.folder.name,
            "status": status,
            "started": before.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
            "models": [{"name": self.model, "role": "model", "path": "", "weights": ""}],
            "llmlab": __version__,
            "python": platform.python_version(),
            "asked": self.asked,
        }
