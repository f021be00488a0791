"""Evaluations of models that differ by the seed of their training: the mean of each figure, and its spread.

The interval is over seeds (Student's t): it says how far another seed may be off, which the intervals of
single evaluations, over rows, do not. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmlab import statistics
from llmlab.errors import LabError
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.runs.folder import MODELS, RunFolder, find_model

# options of a run that another seed may change, too: where it goes, and what it continues from
MAY_DIFFER = (
    "seed", "name", "output_dir", "report_to", "policy_checkpoint", "reference_checkpoint", "init_from",
    "model",
)  # fmt: skip


@dataclass(frozen=True)
class OverSeeds:
    """A figure over evaluations.

    Attributes:
        source: that it is of.
        figure: its name.
        values: of each evaluation.
        mean: of them.
        spread: their standard deviation, with count - 1.
        low: end of the 95 % interval of the mean over seeds.
        high: the other end.
    """

    source: str
    figure: str
    values: tuple[float, ...]
    mean: float
    spread: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Compared:
    """Evaluations beside each other.

    Attributes:
        names: of the evaluations.
        seeds: of their models' training, None where it is not known.
        figures: that all of them have.
        differing: options of the training, beside the seed, in which the models differ.
    """

    names: tuple[str, ...]
    seeds: tuple[Any, ...]
    figures: tuple[OverSeeds, ...]
    differing: tuple[str, ...]


def over_seeds(folders: Sequence[EvaluationFolder]) -> Compared:
    """Returns the figures of evaluated models over several evaluations of the same rows.

    Raises:
        LabError: when one is named twice or not done, or they have other rows or no figure in common.
    """
    names = [one.name for one in folders]
    if len(set(names)) < len(names):
        raise LabError("is named twice", where=next(name for name in names if names.count(name) > 1))
    records = [one.record for one in folders]
    for folder, record in zip(folders, records, strict=True):
        if record.get("status") != "done":
            raise LabError(f"is {folder.status}, not done", where=folder.name)
        if _rows(record) != _rows(records[0]):
            raise LabError(f"was measured on other rows than {names[0]}", where=folder.name)
    found = [_figures(record) for record in records]
    figures = []
    for source, figure in found[0]:
        values = tuple(each[source, figure] for each in found if (source, figure) in each)
        if len(values) == len(found):
            interval = statistics.over_seeds(values)
            spread = float(np.std(values, ddof=1))
            mean = sum(values) / len(values)
            figures.append(OverSeeds(source, figure, values, mean, spread, interval.low, interval.high))
    if not figures:
        raise LabError("the evaluations have no figure in common", where=", ".join(names))
    runs = [_training(record) for record in records]
    options = [{k: v for k, v in one.items() if k not in MAY_DIFFER} for one in runs]
    keys = dict.fromkeys(name for one in options for name in one)
    differing = tuple(name for name in keys if len({_key(one.get(name)) for one in options}) > 1)
    return Compared(tuple(names), tuple(one.get("seed") for one in runs), tuple(figures), differing)


def _rows(record: dict[str, Any]) -> str:
    """Returns what was asked, but for the model."""
    asked = record.get("asked") or {}
    options = {
        k: v for k, v in (asked.get("options") or {}).items() if k not in ("model", "against", "forgetting")
    }
    return _key([asked.get("tasks"), options])


def _figures(record: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {
        (one["source"], name): float(entry["value"])
        for one in record.get("results") or ()
        if one["role"] == "model"
        for name, entry in one["figures"].items()
    }


def _training(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of the run that made an evaluated model; nothing where none is known."""
    try:
        path = Path(find_model(record["models"][0]["name"]))
    except LabError:
        return {}
    folder = path.parent if path.name in MODELS or path.name.startswith("checkpoint-") else path
    options = RunFolder(folder).record.get("config")
    return options if isinstance(options, dict) else {}


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
