"""Standard benchmarks by EleutherAI's harness (lm-eval): its tasks and figures, the lab's models and folders.

One name of the config (a task, a group or a tag of tasks) is one call of `lm_eval.evaluate` with its `HFLM`
around a model that the lab has loaded, prepared so that figures are those of `simple_evaluate`. Its rows are
one write: a kill leaves all of them or none. The first one carries what the call said as a whole, by
which the rest is found again.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from llmlab.config.evaluation import EvaluationConfig
from llmlab.errors import LabError
from llmlab.evaluation.benchmarks import MEASURE
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.harness_rows import rows_of, values_of
from llmlab.evaluation.loaded import Loaded
from llmlab.evaluation.progress import Progress, Tell
from llmlab.evaluation.subjects import Subject

Answer = dict[str, Any]
FORMAT = 1  # raised whenever the same rows would be kept otherwise
UNREACHABLE = ("hub", "offline", "connect", "resolve", "cache", "timed out")  # in words of datasets


class Benchmarks:
    """The benchmarks of an evaluation.

    Args:
        config: of the evaluation.
        folder: that the answers go to.
        here: answers that are in it.
        elsewhere: answers of other evaluations, by their keys.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        folder: EvaluationFolder,
        here: Sequence[Answer],
        elsewhere: dict[str, Answer],
    ):
        self.config, self.folder, self.elsewhere = config, folder, elsewhere
        self.here = {(one["model"], one["key"]): one for one in here}
        self._manager: Any = None
        self._loaded: dict[str, dict[str, Any]] = {}

    def check(self, tell: Tell | None) -> None:
        """Loads the tasks and their data, before any model is.

        Raises:
            LabError: when there is no such task, or its data cannot be loaded.
        """
        with _quiet():
            for name in self.config.harness:
                if tell:
                    tell(Progress(self.config.model, name, 0, 0))
                self._loaded[name] = self._load(name)

    def measure(self, subject: Subject, loaded: Loaded, tell: Tell | None) -> list[dict[str, Any]]:
        """Computes what is missing of a model's benchmarks; returns of each task and group how it was read.

        Raises:
            LabError: when there is no such task, its data cannot be loaded, or it fails.
        """
        if not subject.benchmarks:
            return []
        if self.config.chat_template and not loaded.tokenizer.chat_template:
            raise LabError("has no chat template", where=loaded.name, remedy="leave out --chat-template")
        taken = {named.name for named in subject.tasks}
        sources: list[dict[str, Any]] = []
        with _quiet():
            for name in subject.benchmarks:
                if tell:
                    tell(Progress(subject.name, name, 0, 0))
                whole = self._measured(name, subject, loaded)
                rows = sum(one["rows"] for one in whole["tasks"].values())
                if tell:
                    tell(Progress(subject.name, name, rows, rows))
                for source, about in {**whole["tasks"], **whole["groups"]}.items():
                    if source in taken:
                        raise LabError(f"two sources are called {source!r}", remedy="rename one of them")
                    taken.add(source)
                    sources.append(
                        {
                            "source": source,
                            "model": subject.name,
                            "role": subject.role,
                            "measure": MEASURE,
                            "reading": {},
                            "notes": [],
                            "asked": name,
                            "lm_eval": whole["lm_eval"],
                            **about,
                        }
                    )
        return sources

    def _measured(self, name: str, subject: Subject, loaded: Loaded) -> dict[str, Any]:
        """Returns what a call said as a whole; the call is made where its rows are not there."""
        found = self._loaded.pop(name, None) or self._load(name)  # what was evaluated holds its answers
        with _failing(name, "cannot be read"):
            asked = self._identity(found["tasks"], subject, loaded)
        first = next(iter(found["tasks"]))
        for place, known in (("here", self._of_here(subject)), ("elsewhere", self.elsewhere.get)):
            rows = _rows_of_call(known, asked, first)
            if rows and place == "elsewhere":
                self.folder.append([{**row, "model": subject.name} for row in rows])
            if rows:
                return dict(rows[0]["call"])
        rows = self._computed(name, found, asked, subject, loaded)
        self.folder.append(rows)
        self.elsewhere.update({row["key"]: row for row in rows})
        return dict(rows[0]["call"])

    def _of_here(self, subject: Subject) -> Callable[[str], Answer | None]:
        return lambda key: self.here.get((subject.name, key))

    def _load(self, name: str) -> dict[str, Any]:
        """Returns the tasks and groups of a name, with their data.

        Raises:
            LabError: when there is none, or the data cannot be loaded.
        """
        manager = self._manager = self._manager or self._index()
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            where = f" or in {self.config.tasks_folder}" if self.config.tasks_folder else ""
            raise LabError(
                f"there is no task {name!r} in lm-eval{where}",
                where="harness",
                remedy=f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them",
            )
        with _failing(name, "its data cannot be loaded"):
            found: dict[str, Any] = manager.load([name])
        if not found["tasks"]:
            raise LabError(f"{name!r} is no task and holds none", where="harness")
        for task_name, task in found["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):  # as lm-eval marks them
                raise LabError(
                    f"the task {task_name!r} runs code that the model wrote, which is not done here",
                    where="harness",
                    remedy="leave it out",
                )
        return found

    def _index(self) -> Any:
        """Returns the index of tasks; of the folder alone, which is much quicker, where all are in it."""
        from lm_eval.tasks import TaskManager

        folder = self.config.tasks_folder
        if folder:
            own = TaskManager(include_path=folder, include_defaults=False)
            groups = (name for name in self.config.harness if name not in own.all_subtasks)
            with contextlib.suppress(KeyError):  # a group that names tasks of lm-eval
                if set(self.config.harness) <= set(own.all_tasks):
                    own.load([*groups])
                    return own
        return TaskManager(include_path=folder)

    def _identity(self, tasks: dict[str, Any], subject: Subject, loaded: Loaded) -> str:
        """Returns a hash of all that the figures depend on: weights, tokenizer, options, tasks, data."""
        from lm_eval import __version__

        config, tokenizer = self.config, loaded.tokenizer
        digest = hashlib.sha256()
        options = [
            config.load_in,
            str(loaded.model.dtype),
            config.few_shot,
            config.chat_template,
            config.limit,
        ]
        vocabulary = sorted(tokenizer.get_vocab().items())
        digest.update(_text([FORMAT, __version__, subject.weights, options]))
        digest.update(_text([vocabulary, str(tokenizer.chat_template)]))
        for name, task in tasks.items():
            digest.update(_text([name, task.dump_config()]))
            for doc in islice(task.eval_docs, config.limit):
                digest.update(_text(doc))
            if config.few_shot or task.get_config("num_fewshot"):
                for doc in task.fewshot_docs() or ():
                    digest.update(_text(doc))
        return digest.hexdigest()

    def _notes(self, few_shot: int) -> list[str]:
        """Returns what was not done as it was asked."""
        asked = self.config.few_shot
        if asked is None or asked == few_shot:
            return []
        return [f"`few_shot` {asked} was not used: the task says that it is asked with {few_shot}"]

    def _begin(self, tasks: dict[str, Any]) -> None:
        """Does what `simple_evaluate` does before it evaluates: seeds, and how many examples are solved.

        The rest of it asks git, the hub and a dozen programs about the machine, for 2 seconds a call.
        """
        from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        for task in tasks.values():
            own = task.get_config("num_fewshot")
            if self.config.few_shot is not None and own != 0:
                task.set_config(key="num_fewshot", value=self.config.few_shot)
            elif own is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)

    def _computed(
        self, name: str, found: dict[str, Any], asked: str, subject: Subject, loaded: Loaded
    ) -> list[Answer]:
        """Returns the rows of a call of lm-eval.

        Raises:
            LabError: when a task fails, or the model gives no numbers.
        """
        from lm_eval import __version__, evaluate
        from lm_eval.models.huggingface import HFLM

        config = self.config
        backend = "seq2seq" if loaded.model.config.is_encoder_decoder else "causal"
        with _failing(name, "fails"):
            self._begin(found["tasks"])
            results: Any = evaluate(
                lm=HFLM(
                    pretrained=loaded.model,
                    tokenizer=loaded.tokenizer,
                    backend=backend,
                    batch_size=config.batch_size,
                ),
                task_dict=found,
                limit=config.limit,
                apply_chat_template=config.chat_template,
                fewshot_as_multiturn=True,
                bootstrap_iters=0,  # of its standard errors; the intervals are the lab's own
            )
        rows: list[Answer] = []
        call: dict[str, Any] = {"lm_eval": __version__, "tasks": {}, "groups": {}}
        for task_name, task in found["tasks"].items():
            with _failing(name, "says what cannot be kept"):
                own = rows_of(task, results["samples"][task_name], loaded.tokenizer)
            call["tasks"][task_name] = {
                "rows": len(own),
                "values": values_of(results["results"][task_name]),
                "version": str(results["versions"][task_name]),
                "few_shot": results["n-shot"][task_name],
                "notes": self._notes(results["n-shot"][task_name]),
            }
            for row in own:
                key = _key(asked, task_name, row["row"])
                rows.append({"key": key, "model": subject.name, "source": task_name, **row})
        for group, about in (results.get("groups") or {}).items():
            call["groups"][group] = {"rows": int(about.get("sample_len") or 0), "values": values_of(about)}
        values = [
            value
            for one in (*call["tasks"].values(), *call["groups"].values())
            for value in one["values"].values()
        ]
        if any(value != value for value in values):
            raise LabError(f"{name}: gives values that are not numbers (NaN)", where=loaded.name, exit_code=1)
        rows[0]["call"] = call
        return rows


def _text(data: Any) -> bytes:
    def named(value: Any) -> str:
        return getattr(value, "__qualname__", None) or type(value).__name__

    return json.dumps(data, default=named, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")


def _key(asked: str, task: str, row: int) -> str:
    return hashlib.blake2b(f"{asked}/{task}/{row}".encode(), digest_size=16).hexdigest()


def _rows_of_call(known: Callable[[str], Answer | None], asked: str, first: str) -> list[Answer]:
    """Returns the rows of a call that was made before, the first one first; none where one is missing."""
    head = known(_key(asked, first, 0))
    if not head or not head.get("call"):
        return []
    keys = [
        _key(asked, name, row) for name, one in head["call"]["tasks"].items() for row in range(one["rows"])
    ]
    rows = [row for key in keys if (row := known(key))]
    return rows if len(rows) == len(keys) else []


@contextlib.contextmanager
def _failing(name: str, what: str) -> Iterator[None]:
    """Turns whatever a task raises, which is code and data from outside, into one message.

    Raises:
        LabError: with the reason.
    """
    try:
        yield
    except LabError:
        raise
    except torch.OutOfMemoryError:
        raise LabError(
            "the memory does not hold a batch",
            where=name,
            remedy="the same command with a smaller `batch_size` goes on",
            exit_code=1,
        ) from None
    except Exception as error:  # lm-eval and datasets raise many kinds
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        text = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        hub = what.startswith("its data") and any(word in text.lower() for word in UNREACHABLE)
        load_it = "it is on the hub: load it once where that can be reached, or use tasks over local files"
        raise LabError(
            f"{what} ({text[:300]})",
            where=f"harness: {name}",
            remedy=load_it if hub else "",
        ) from None


class _WithoutBars(io.TextIOBase):
    """A stream without progress bars, which lm-eval cannot be told to leave out; the rest is passed on."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        """Returns the number of characters."""
        if text.strip() and not text.startswith("\r"):
            self.stream.write(text if text.endswith("\n") else text + "\n")
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""
        self.stream.flush()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Limits lm-eval's log to errors, and leaves its progress bars out."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(_WithoutBars(sys.stderr)):
            yield
    finally:
        logger.setLevel(before)
