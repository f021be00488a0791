"""Files of answers, as `llmlab generate --input` writes them, become an evaluation to be judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmlab.errors import LabError
from llmlab.evaluation.folder import ANSWERS, EVALUATIONS, Answer, EvaluationFolder, find_evaluation
from llmlab.files import read_object
from llmlab.journal import Journal

COLUMN = "completion"
REFERENCES = ("reference", "answer", "solution", "ground_truth")  # columns of a right answer, where one is
MEASURE = "answer"
ROLES = ("model", "against")


def evaluation_named(name: str, against: str | None = None, root: Path = EVALUATIONS) -> EvaluationFolder:
    """Returns an evaluation by its name, its folder or its answers; files of `generate` become one.

    Args:
        name: of an evaluation, or a file of answers.
        against: another file of answers, of another model.
        root: folder of evaluations.

    Raises:
        LabError: when there is none, or a file holds no answers.
    """
    files = [Path(name), *([Path(against)] if against else [])]
    if not files[0].is_file():
        if against:
            raise LabError(
                "`--against` is for two files of answers",
                where=name,
                remedy="an evaluation has both models: `llmlab evaluate MODEL --against OTHER`",
            )
        return find_evaluation(name, root)
    if files[0].name == ANSWERS and not against:
        return find_evaluation(str(files[0].parent), root)
    return import_files(files, root)


def import_files(files: Sequence[Path], root: Path = EVALUATIONS) -> EvaluationFolder:
    """Returns the evaluation of the answers in files; made at the first time, later with what was added.

    Raises:
        LabError: when a file holds no answers, or another evaluation has the name.
    """
    folder = EvaluationFolder(root / "-vs-".join(dict.fromkeys(file.stem for file in files)))
    sources = [str(file) for file in files]
    record = folder.record
    if folder.path.exists() and record.get("answers_from") != sources:
        raise LabError(
            "already exists, and was not made from this file",
            where=str(folder.path),
            remedy=f"`llmlab assess {folder.path}` assesses it; rename the file otherwise",
        )
    answers = [answer for file in files for answer in read_answers(file)]
    models = list(dict.fromkeys(answer["model"] for answer in answers))
    if len(models) < len(files):
        raise LabError(
            "both files are answers of the same model", where=" and ".join(sources), remedy="leave one out"
        )
    with folder.lock():
        folder.drop_torn_line()
        known = {answer["key"] for answer in folder.answers()}
        if added := [answer for answer in answers if answer["key"] not in known]:
            folder.append(added)
        if not record:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            folder.write(
                {
                    "name": folder.name,
                    "status": "done",
                    "started": now,
                    "models": [
                        {"role": role, "name": name} for role, name in zip(ROLES, models, strict=False)
                    ],
                    "answers_from": sources,
                    "results": [],
                    "differences": [],
                }
            )
    return folder


def read_answers(file: Path) -> list[Answer]:
    """Returns the answers of a file of `generate`; rows that could not be answered are left out.

    Raises:
        LabError: when it holds none.
    """
    settings = _settings(file)
    column = str(settings.get("column") or COLUMN)
    model = str(settings.get("model") or file.stem)
    answers = list(_answers(file, column, model))
    if not answers:
        raise LabError(
            f"has no row with a prompt and an answer in `{column}`",
            where=str(file),
            remedy="`llmlab generate MODEL --input FILE --output FILE` writes such a file",
        )
    return answers


def _settings(file: Path) -> dict[str, Any]:
    try:
        return read_object(file.with_name(f"{file.name}.settings.json"))
    except (OSError, ValueError):
        return {}


def _answers(file: Path, column: str, model: str) -> Iterator[Answer]:
    for number, row in enumerate(Journal(file).rows()):
        prompt, said = row.get("prompt") or row.get("messages"), row.get(column)
        if not isinstance(said, str) or not isinstance(prompt, (str, list)):
            continue
        reference = next((row[name] for name in REFERENCES if isinstance(row.get(name), str)), None)
        text = json.dumps([model, number, prompt, said], ensure_ascii=False)
        yield {
            "key": hashlib.blake2b(text.encode(errors="replace"), digest_size=16).hexdigest(),
            "model": model,
            "source": "prompts",
            "row": number,
            "part": 0,
            "group": None,
            "measure": MEASURE,
            "prompt": prompt if isinstance(prompt, str) else _turns(prompt),
            "answer": said,
            "reference": reference if column != "answer" else None,
            "score": None,
            "log_prob": None,
            "tokens": None,
        }


def _turns(messages: list[Any]) -> list[dict[str, str]]:
    turns = [turn for turn in messages if isinstance(turn, dict)]
    return [{"role": str(turn.get("role")), "content": str(turn.get("content") or "")} for turn in turns]
