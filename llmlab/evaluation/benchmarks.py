"""Benchmarks of EleutherAI's harness (lm-eval): what can be refused before it is loaded, and what is computed
from its rows. No torch.

Each row keeps the values of the task's metrics and the name of the function by which lm-eval makes one figure
of them. The figure itself is lm-eval's own; its interval and differences between models are computed here,
for the four functions that are known: those of nearly all tasks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmlab.config.evaluation import EvaluationConfig
from llmlab.errors import LabError
from llmlab.statistics import Sample, mean_of, ratio
from llmlab.trust import TRUSTED

MEASURE = "benchmark"  # of the answers
# lines of a task file by which lm-eval runs code: functions and classes beside the file
CODE = re.compile(r"!function|^\s*class\s*:", re.MULTILINE)
INCLUDED = re.compile(r"^\s*include\s*:\s*(\S+)", re.MULTILINE)


def check_benchmarks(config: EvaluationConfig) -> None:
    """Refuses what can be refused without lm-eval.

    Raises:
        LabError: where lm-eval is missing, or the folder of tasks is, or it holds code that is not trusted.
    """
    if not config.harness:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise LabError("`harness` needs the package lm-eval", remedy="pip install 'llmlab[lm-eval]'")
    if not config.tasks_folder:
        return
    folder = Path(config.tasks_folder)
    if not folder.is_dir():
        raise LabError("there is no such folder", where=f"tasks_folder: {folder}")
    if not any(folder.rglob("*.yaml")):
        raise LabError("holds no task: there is no .yaml file in it", where=f"tasks_folder: {folder}")
    if str(folder) in TRUSTED or config.tasks_folder in TRUSTED:
        return
    if file := next((file for file in sorted(folder.rglob("*.yaml")) if _runs_code(file, folder)), None):
        raise LabError(
            "this task runs Python code of its own, which is run only if you trust its folder by name",
            where=str(file),
            remedy=f"add --trust {config.tasks_folder}",
        )


def _runs_code(file: Path, folder: Path) -> bool:
    """Returns whether a task file names code, or includes a file from elsewhere, which may."""
    text = file.read_text(errors="replace")
    inside = folder.resolve()
    elsewhere = (
        not (file.parent / name.strip("\"'")).resolve().is_relative_to(inside)
        for name in INCLUDED.findall(text)
    )
    return bool(CODE.search(text)) or any(elsewhere)


def folder_fingerprint(folder: str) -> str:
    """Returns a hash of all files in a folder of tasks; data that lies elsewhere is not in it."""
    digest = hashlib.sha256()
    for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        if "__pycache__" not in file.parts:
            digest.update(file.relative_to(folder).as_posix().encode())
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _mean(values: Sequence[Any]) -> Sample:
    return mean_of(values)


def _perplexity(values: Sequence[Any]) -> Sample:
    nats = mean_of([-value for value in values])
    return Sample(nats.features, lambda totals: np.exp(ratio(totals)))


def _rate(values: Sequence[Any], unit: float = 1.0) -> Sample:
    nats, weights = ([float(pair[place]) for pair in values] for place in (0, 1))
    return Sample(np.stack([-np.array(nats) / unit, np.array(weights)], axis=1), ratio)


def _weighted_perplexity(values: Sequence[Any]) -> Sample:
    nats = _rate(values)
    return Sample(nats.features, lambda totals: np.exp(ratio(totals)))


def _bits_per_byte(values: Sequence[Any]) -> Sample:
    return _rate(values, math.log(2))


# lm-eval's function -> what it is of, and whether its values are pairs (log-probability, words or bytes)
AGGREGATIONS: dict[str, tuple[Callable[[Sequence[Any]], Sample], bool]] = {
    "mean": (_mean, False),
    "perplexity": (_perplexity, False),
    "weighted_perplexity": (_weighted_perplexity, True),
    "bits_per_byte": (_bits_per_byte, True),
}


def samples_of_benchmark(answers: Sequence[dict[str, Any]]) -> dict[str, Sample]:
    """Returns what each figure of a benchmark is computed from; figures of functions that are not known here
    are left out, as are those that some rows lack.
    """
    samples = {}
    for name, first in (answers[0]["metrics"] if answers else {}).items():
        if first["by"] not in AGGREGATIONS:
            continue
        make, pairs = AGGREGATIONS[first["by"]]
        values = [one["metrics"].get(name, {}).get("value") for one in answers]
        if all(_fits(value, pairs) for value in values):
            samples[name] = make(values)
    return samples


def _fits(value: Any, pair: bool) -> bool:
    if pair:
        return isinstance(value, list) and len(value) == 2 and all(_fits(one, False) for one in value)
    return isinstance(value, int | float)


def better_of(name: str, answers: Sequence[dict[str, Any]]) -> Literal["higher", "lower"] | None:
    """Returns which of two values of a benchmark's figure is the better one, as its task says."""
    metrics = answers[0].get("metrics") if answers else None
    found = (metrics or {}).get(name, {}).get("better")
    return found if found in ("higher", "lower") else None
