"""An evaluation on disk: its answers as they came, and its record. No torch.

    evaluations/<name>/
      evaluation.json   the config, versions, which models (path, hash of the weights), status, figures
      answers.jsonl     one answer a line, added batch by batch
      answers.csv       the same as a table, on request

A batch of answers is one write and one sync: a kill leaves whole batches, and at most one torn line, which is
dropped when the evaluation goes on.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.errors import LabError
from llmlab.evaluation.record import RECORD, read_record
from llmlab.files import write_text_atomically
from llmlab.runs.lock import run_lock, was_killed

EVALUATIONS = Path("evaluations")
ANSWERS, TABLE = "answers.jsonl", "answers.csv"
COLUMNS = (
    "model", "source", "row", "part", "group", "measure", "prompt", "answer", "reference", "score",
    "log_prob", "tokens",
)  # fmt: skip  # of the table, in order
Answer = dict[str, Any]


@dataclass(frozen=True)
class EvaluationFolder:
    """The folder of an evaluation."""

    path: Path

    @property
    def name(self) -> str:
        """The evaluation's name."""
        return self.path.name

    @property
    def record(self) -> dict[str, Any]:
        """The content of `evaluation.json`; empty where there is none, or one that is damaged."""
        return read_record(self.path)[0]

    @property
    def damage(self) -> str:
        """What is wrong with `evaluation.json`, in words; "" when it is right or not there."""
        return read_record(self.path)[1]

    @property
    def status(self) -> str:
        """How it stands: "running", "done", "stopped", "killed", "damaged"."""
        status = str(self.record.get("status") or "damaged")
        return "killed" if status == "running" and was_killed(self.path) else status

    def summary(self) -> dict[str, Any]:
        """Returns what a list shows of it: name, model, status, when it began, the model's figures."""
        record = self.record
        model = record["models"][0]["name"] if record else "?"
        figures = {
            f"{one['source']}/{name}": entry["value"]
            for one in record.get("results") or ()
            if one["role"] == "model"
            for name, entry in one["figures"].items()
        }
        started = str(record.get("started") or "")
        return {
            "name": self.name,
            "path": str(self.path),
            "model": model,
            "status": self.status,
            "started": started,
            "figures": figures,
        }

    def write(self, record: dict[str, Any]) -> None:
        """Writes `evaluation.json`, whole or not at all.

        Raises:
            LabError: when it cannot be written.
        """
        text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
        write_text_atomically(self.path / RECORD, text + "\n")

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes out while answers are added.

        Raises:
            LabError: when another one is in it, or the folder cannot be made.
        """
        return run_lock(self.path, doing="evaluating", option="name")

    def answers(self) -> list[Answer]:
        """Returns the answers in the order in which they came; a torn last line is left out.

        Raises:
            LabError: when a line in the middle is damaged, or the file cannot be read.
        """
        return [answer for answer, _ in self._lines()]

    def _lines(self) -> Iterator[tuple[Answer, int]]:
        """Yields each answer and the place behind it."""
        path, end = self.path / ANSWERS, 0
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        return
                    end += len(line)
                    yield _answer(line, f"{path}: line {number}"), end
        except FileNotFoundError:
            return
        except OSError as error:
            raise LabError(f"cannot be read ({error.strerror})", where=str(path)) from None

    def drop_torn_line(self) -> None:
        """Takes a last line that a kill cut off out of the file."""
        path = self.path / ANSWERS
        end = max((end for _, end in self._lines()), default=0)
        if path.exists() and end < path.stat().st_size:
            os.truncate(path, end)

    def append(self, answers: Sequence[Answer]) -> None:
        """Adds answers, all of them or none, and waits until the disk has them.

        Raises:
            LabError: when the disk does not take them.
        """
        path = self.path / ANSWERS
        content = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in answers).encode(
            errors="surrogatepass"
        )
        try:
            with open(path, "ab", buffering=0) as file:
                size = file.tell()
                try:
                    written = file.write(content)
                    if written != len(content):
                        raise OSError(28, "No space left on device")
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        os.truncate(path, size)
                    raise
        except OSError as error:
            raise LabError(
                f"cannot be written ({error.strerror}); the answers before are complete",
                where=str(path),
                remedy="free space; the same command goes on",
                exit_code=1,
            ) from None

    def write_csv(self) -> Path:
        """Writes the answers as a table and returns its file.

        Raises:
            LabError: when it cannot be written.
        """
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
        table.writeheader()
        for one in self.answers():
            prompt = one.get("prompt")
            flat = prompt if isinstance(prompt, str) else _said(prompt)
            table.writerow({**one, "prompt": flat})
        write_text_atomically(self.path / TABLE, text.getvalue())
        return self.path / TABLE


def _said(prompt: Any) -> str:
    """Returns the messages of a prompt as text: one as it is, several with their roles."""
    turns = [turn for turn in prompt or () if isinstance(turn, dict)]
    if len(turns) == 1:
        return str(turns[0].get("content", ""))
    return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in turns)


def _answer(line: bytes, where: str) -> Answer:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        raise LabError(
            "is damaged", where=where, remedy="delete that line; the same command goes on"
        ) from None
    wanted = {"key": str, "model": str, "source": str, "row": int, "measure": str}
    if not isinstance(answer, dict) or any(
        not isinstance(answer.get(name), kind) for name, kind in wanted.items()
    ):
        raise LabError(
            "is no answer of an evaluation",
            where=where,
            remedy="delete that line; the same command goes on",
        )
    return answer


def all_evaluations(root: Path = EVALUATIONS) -> list[EvaluationFolder]:
    """Returns the evaluations in a folder, newest first."""
    folders = [EvaluationFolder(path.parent) for path in root.glob(f"*/{RECORD}")]
    return sorted(folders, key=lambda one: str(one.record.get("started", "")), reverse=True)


def find_evaluation(name: str, root: Path = EVALUATIONS) -> EvaluationFolder:
    """Returns an evaluation by its name or its folder.

    Raises:
        LabError: when there is none.
    """
    for path in (Path(name), root / name):
        if (path / RECORD).is_file():
            folder = EvaluationFolder(path)
            if folder.damage:
                raise LabError(
                    f"its {RECORD} is damaged: {folder.damage}",
                    where=str(path),
                    remedy="evaluate again under another name; its answers are taken, not computed again",
                )
            return folder
    names = [one.name for one in all_evaluations(root)]
    raise LabError(
        "there is no such evaluation",
        where=name,
        remedy=f"there are {', '.join(names[:5])}" if names else "`llmlab evaluate MODEL` makes one",
    )


def known_answers(weights: Iterable[str], root: Path, but: Path) -> dict[str, Answer]:
    """Returns the answers that other evaluations have of these weights, by their keys; what cannot be read is
    left out.

    Args:
        weights: hashes.
        root: folder of evaluations.
        but: a folder that is not looked at.
    """
    wanted = set(weights)
    found: dict[str, Answer] = {}
    for folder in all_evaluations(root):
        hashes = {one.get("weights") for one in folder.record.get("models") or ()}
        if folder.path.resolve() == but.resolve() or not (folder.damage or hashes & wanted):
            continue
        with contextlib.suppress(LabError):
            found |= {one["key"]: one for one in folder.answers()}
    return found
