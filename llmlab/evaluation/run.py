"""The story of an evaluation: what is asked of whom, what is known already, what is computed, what it says.

Answers are kept as they are computed. One that was computed, here before a stop or in another evaluation of
the same weights, is taken and not computed again.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmlab import __version__
from llmlab.config.evaluation import PARENT, EvaluationConfig
from llmlab.config.gate import Bound, load_gate
from llmlab.config.rewards import RewardSource
from llmlab.config.suites import with_benchmarks
from llmlab.data.prompts import prompt_shapes
from llmlab.errors import LabError
from llmlab.evaluation.answers import Sampling
from llmlab.evaluation.assessed import judged
from llmlab.evaluation.benchmarks import check_benchmarks
from llmlab.evaluation.computing import answers_of, line_of
from llmlab.evaluation.figures import is_whole
from llmlab.evaluation.folder import EvaluationFolder, known_answers
from llmlab.evaluation.gate import breaches, models_of
from llmlab.evaluation.harness import Benchmarks
from llmlab.evaluation.items import SHAPES, Item, read_rows
from llmlab.evaluation.judge_check import check_judges
from llmlab.evaluation.loaded import Judges, Loaded, load
from llmlab.evaluation.measures import Answer, Measure, Reader, Reward, choose
from llmlab.evaluation.progress import Progress, Tell
from llmlab.evaluation.results import differences, result_of, win_rates
from llmlab.evaluation.subjects import (
    GENERAL,
    JUDGE,
    NamedTask,
    Subject,
    asked_for,
    evaluation_name,
    subjects_of,
)
from llmlab.models.dual_head import LabDualHeadForCausalLM

PACKAGES = ("torch", "transformers", "datasets", "scipy", "numpy")
FORMAT = 1  # raised whenever the same tokens would be answered otherwise


MakeReward = Callable[[list[RewardSource], str], Reward]  # rewards, device -> a function of answers


def evaluate(
    config: EvaluationConfig, make_reward: MakeReward | None = None, tell: Tell | None = None
) -> EvaluationFolder:
    """Measures what a config says, and returns the folder with the answers and the record.

    Raises:
        LabError: when a model, a source or a gate cannot be used, or the name is that of another evaluation;
            with exit code 1 when a figure is beyond its bound, which is saved all the same.
    """
    config = with_benchmarks(config)
    gate = load_gate(config.gate) if config.gate else {}
    check_benchmarks(config)
    subjects = subjects_of(config, models_of(gate))
    asked = asked_for(config, subjects)
    folder = _folder(config, asked)
    with folder.lock():
        folder.drop_torn_line()
        record = _begun(config, asked, subjects, folder)
        began, before = time.perf_counter(), float(record.get("seconds") or 0)
        done = _is_done(record, folder.record, subjects)
        record["status"] = "running"
        folder.write(record)
        try:
            if not done:
                notes = _answer_all(config, subjects, folder, make_reward, tell)
                record |= {"sources": notes}
            record |= _figures(config, subjects, folder, record["sources"])
            record |= judged(folder, record)
        except BaseException as error:
            ended = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            _note_end(folder, {**record, "status": ended, "seconds": before + time.perf_counter() - began})
            raise
        record |= {"status": "done", "seconds": round(before + time.perf_counter() - began, 1)}
        record["gate"] = _gate(gate, subjects, record["results"]) if gate else None
        folder.write(record)
        if config.csv:
            folder.write_csv()
    return folder


def _folder(config: EvaluationConfig, asked: dict[str, Any]) -> EvaluationFolder:
    """Returns the folder of this evaluation: that of its name where it is new or the same one, else, where
    nobody gave the name, the first of NAME-2, NAME-3 ...

    Raises:
        LabError: when the name that was given is that of another evaluation.
    """
    name, number = evaluation_name(config), 1
    while True:
        path = Path(config.output_dir) / (name if number == 1 else f"{name}-{number}")
        folder = EvaluationFolder(path)
        before = folder.record.get("asked")
        if (before is None and not folder.answers()) or before == asked:
            return folder
        if config.name:
            raise LabError(
                f"is another evaluation{_what_differs(before, asked)}",
                where=str(path),
                remedy="choose another `name`, or remove the folder",
            )
        number += 1


def _what_differs(before: Any, asked: dict[str, Any]) -> str:
    """Returns in words what differs first."""
    if not isinstance(before, dict):
        return ", whose record is damaged"
    for part, words in (("options", "`{}` was {} and is {}"), ("weights", "the weights of the {} changed")):
        was, now = before.get(part) or {}, asked[part]
        for name in {**was, **now}:
            if was.get(name) != now.get(name):
                return ": " + words.format(name, was.get(name), now.get(name))
    return ": the rows or the suite changed"


def _begun(
    config: EvaluationConfig, asked: dict[str, Any], subjects: list[Subject], folder: EvaluationFolder
) -> dict[str, Any]:
    """Returns the record of an evaluation that begins or goes on."""
    before = folder.record
    return {
        "name": folder.name,
        "status": before.get("status"),
        "started": before.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": before.get("seconds") or 0.0,
        "config": config.to_json_dict(),
        "models": [subject.to_json() for subject in subjects],
        "llmlab": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "asked": asked,
        **{
            name: before[name]
            for name in ("sources", "results", "differences", "forgetting", "gate")
            if name in before
        },
    }


def _is_done(record: dict[str, Any], before: dict[str, Any], subjects: list[Subject]) -> bool:
    """Returns whether all answers are there: those of the same weights, to every task."""
    there = {(one["model"], one.get("asked") or one["source"]) for one in before.get("sources") or ()}
    wanted = {one for subject in subjects for one in subject.asked}
    same = before.get("models") == record["models"]
    return before.get("status") == "done" and same and wanted <= there


def _note_end(folder: EvaluationFolder, record: dict[str, Any]) -> None:
    try:
        folder.write(record)
    except LabError:  # a full disk: the answers are there, and the same command goes on
        return


def _answer_all(
    config: EvaluationConfig,
    subjects: list[Subject],
    folder: EvaluationFolder,
    make_reward: MakeReward | None,
    tell: Tell | None,
) -> list[dict[str, Any]]:
    """Computes the answers that are missing; returns of each model and source how it was read."""
    sources: list[dict[str, Any]] = []
    hashes = [subject.weights for subject in subjects]
    elsewhere = known_answers(hashes, folder.path.parent, folder.path)
    here = {_place(one): one for one in folder.answers()}
    before: Loaded | None = None
    benchmarks = Benchmarks(config, folder, [*here.values()], elsewhere)
    benchmarks.check(tell)
    with Judges(config, folder.path) as judges:
        sources += check_judges(config, folder, judges, here, tell)
        for subject in subjects:
            if not subject.asked:
                continue
            loaded = load(subject.name, before, config)
            before = loaded if isinstance(loaded.model, LabDualHeadForCausalLM) else None
            for named in subject.tasks:
                job = _Job(subject, named, loaded, config, folder, judges, make_reward)
                with loaded.answering():
                    sources.append(_answer_task(job, here, elsewhere, tell))
            with loaded.answering():
                sources += benchmarks.measure(subject, loaded, tell)
    return sources


@dataclass(frozen=True)
class _Job:
    """A model, loaded, and one of its tasks."""

    subject: Subject
    named: NamedTask
    loaded: Loaded
    config: EvaluationConfig
    folder: EvaluationFolder
    judges: Judges
    make_reward: MakeReward | None

    def reader(self) -> Reader:
        """Returns who answers, and how."""
        config, task = self.config, self.named.task
        rewards = task.rewards
        reward = None
        if rewards:
            assert self.make_reward is not None
            reward = self.make_reward(rewards, str(self.loaded.model.device))
        judge = self.judges.of(task.judge) if task.judge else None
        sampling = Sampling(config.temperature, config.top_p, config.top_k, config.seed)
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        return Reader(model, tokenizer, sampling, config.repeats, reward, judge, config.judge_tokens)

    def identity(self) -> dict[str, Any]:
        """Returns what an answer depends on beside what is asked."""
        return {
            "format": FORMAT,
            "weights": self.subject.weights,
            "load_in": self.config.load_in,
            "dtype": str(self.loaded.model.dtype),
        }


def _place(one: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what an answer of an evaluation is the answer to."""
    return one["model"], one["source"], one["row"], one.get("part") or 0


def _answer_task(
    job: _Job,
    here: dict[tuple[Any, ...], Answer],
    elsewhere: dict[str, Answer],
    tell: Tell | None,
) -> dict[str, Any]:
    """Computes what is missing of a task; returns how its rows were read."""
    task, subject, folder = job.named.task, job.subject, job.folder
    rows, notes = read_rows(task, prompt_shapes(task.source) if task.rewards else SHAPES)
    measure = choose(task, job.reader(), rows)
    prepared = measure.prepare(rows)
    keys = {(item.row, item.part): item.key(measure.name, job.identity()) for item in prepared.items}
    missing: dict[str, list[Item]] = {}  # several rows may ask the same
    taken: list[Answer] = []
    for item in prepared.items:
        key = keys[item.row, item.part]
        at = (subject.name, job.named.name, item.row, item.part)
        if at in here and here[at]["key"] == key and is_whole(measure.name, here[at]):
            continue
        known = elsewhere.get(key)
        if known and is_whole(measure.name, {**known, "reference": item.reference}):
            taken.append(_saved(job, measure, item, key, known))
        else:
            missing.setdefault(key, []).append(item)
    if taken:
        folder.append(taken)
    done, total = len(prepared.items) - sum(map(len, missing.values())), len(prepared.items)

    def say() -> None:
        if tell:
            tell(Progress(subject.name, job.named.name, done, total))

    say()
    for batch in measure.batches([items[0] for items in missing.values()], job.config.batch_size):
        computed = list(zip(batch, _answers(measure, batch, job), strict=True))
        lines = []
        for item, answer in computed:
            key = keys[item.row, item.part]
            lines += [_saved(job, measure, same, key, answer) for same in missing[key]]
            elsewhere[key] = answer
        folder.append(lines)
        done += len(lines)
        say()
    return {
        "source": job.named.name,
        "model": subject.name,
        "role": subject.role,
        "measure": measure.name,
        "rows": len(rows),
        "reading": prepared.reading,
        "notes": notes,
    }


def _answers(measure: Measure, batch: list[Item], job: _Job) -> list[Answer]:
    """Returns the answers to a batch.

    Raises:
        LabError: with exit code 1 when the model fails at it, or gives no numbers.
    """
    full = f"the same command with a `batch_size` below {job.config.batch_size} goes on"
    return answers_of(measure, batch, model=job.loaded.name, full=full)


def _saved(job: _Job, measure: Measure, item: Item, key: str, answer: Answer) -> Answer:
    return line_of(job.subject.name, job.named.name, measure.name, item, key, answer)


def _figures(
    config: EvaluationConfig,
    subjects: list[Subject],
    folder: EvaluationFolder,
    sources: list[dict[str, Any]],
) -> dict[str, Any]:
    """Returns what the answers say: figures of each model and source, and differences between models."""
    answers: dict[tuple[str, str], list[Answer]] = {}
    for one in {_place(one): one for one in folder.answers()}.values():  # the last one of a place counts
        answers.setdefault((one["model"], one["source"]), []).append(one)
    results = [
        result_of(about, answers.get((about["model"], about["source"]), []), config.seed) for about in sources
    ]
    first = subjects[0].name
    found: dict[str, Any] = {"results": results, "differences": [], "forgetting": None}
    for other in subjects[1:]:
        shared = [one for one in results if one["model"] == other.name and one["role"] != JUDGE]
        for about in shared:
            source, measure = about["source"], about["measure"]
            pair = answers.get((first, source), []), answers.get((other.name, source), [])
            beside = differences(measure, source, (first, other.name), pair, config.seed)
            if source == GENERAL:
                found["forgetting"] = beside
            elif other.role == "against":
                found["differences"] += beside
                if measure == "reward":
                    own = next(one for one in results if (one["model"], one["source"]) == (first, source))
                    own["figures"] |= win_rates(*pair, seed=config.seed)
    return found


def _gate(gate: dict[str, Bound], subjects: list[Subject], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns whether the figures hold to the bounds, and which do not."""
    by_role = {role: [one for one in results if one["role"] == role] for role in ("model", "against", PARENT)}
    by_role[PARENT] += by_role["against"]  # of a parent that is the other model, too
    found = breaches(gate, by_role["model"], {name: by_role[name] for name in ("against", PARENT)})
    return {
        "passed": not found,
        "bounds": {name: bound.to_json_dict() for name, bound in gate.items()},
        "breaches": [one.words() for one in found],
    }


@contextmanager
def passing(folder: EvaluationFolder) -> Iterator[None]:
    """Ends with an error once its block is done, where a figure is beyond the bounds of the gate.

    Raises:
        LabError: with exit code 1, naming each figure, its value and its bound.
    """
    yield
    gate = folder.record.get("gate")
    if gate and not gate["passed"]:
        raise LabError("; ".join(gate["breaches"]), exit_code=1)
