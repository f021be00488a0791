"""The evaluations of a run while it learned: a folder each, `evaluations/step-N/`, as of `llmlab evaluate`.

`llmlab.evaluation` fills them; here they are found, moved with a branch that is left, and read for their
intervals.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.files import read_object
from llmlab.runs.figures import SUITE

FOLDER, RECORD = "evaluations", "evaluation.json"
LARGEST = 50_000_000  # bytes of a record


@dataclass(frozen=True)
class SuiteFigure:
    """A figure of a suite, with its 95 % interval where it has one.

    Attributes:
        name: `source/figure`.
        value: over all rows.
        low: end of the interval, None where there is none.
        high: its other end.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def logged(self) -> str:
        """Its name among the figures of a run."""
        return SUITE + self.name


def place(run: Path, step: int) -> Path:
    """Returns the folder of the evaluation behind a step."""
    return run / FOLDER / f"step-{step}"


def places(run: Path) -> dict[int, Path]:
    """Returns the folders of all evaluations by their step, in order."""
    found = {
        int(match[1]): path
        for path in (run / FOLDER).glob("step-*")
        if (match := re.fullmatch(r"step-(\d{1,12})", path.name)) and path.is_dir() and not path.is_symlink()
    }
    return dict(sorted(found.items()))


def leave_after(run: Path, step: int, *, to: Path | None = None) -> None:
    """Removes the evaluations of later steps, or moves them into a folder."""
    for number, path in places(run).items():
        if number <= step:
            continue
        if to is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            (to / FOLDER).mkdir(exist_ok=True)
            path.rename(to / FOLDER / path.name)


def intervals(run: Path) -> dict[str, dict[int, tuple[float, float]]]:
    """Returns the 95 % intervals of the figures of a run's suite, by logged name and step; what cannot be
    read is left out.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for step, path in places(run).items():
        for figure in figures_in(path):
            if figure.low is not None and figure.high is not None:
                found.setdefault(figure.logged, {})[step] = figure.low, figure.high
    return found


def figures_in(folder: Path) -> Iterator[SuiteFigure]:
    """Yields the figures of an evaluation that is done; none of a record that is damaged."""
    record: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        record = read_object(folder / RECORD, largest=LARGEST)
    results = record.get("results") if record.get("status") == "done" else None
    for result in results if isinstance(results, list) else []:
        entries = result.get("figures") if isinstance(result, dict) else None
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            if isinstance(entry, dict) and (value := _number(entry.get("value"))) is not None:
                source = f"{result.get('source')}/{name}"
                yield SuiteFigure(source, value, _number(entry.get("low")), _number(entry.get("high")))


def _number(value: object) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number and isinstance(value, (int, float)) else None
