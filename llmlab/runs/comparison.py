"""Runs beside each other, as data: what differs, and figures with their uncertainty.

Runs whose options differ in nothing but the seed are one group, whose figures are a mean over seeds. The
intervals are those of `llmlab.statistics`: over the seeds of a group (whose figures are taken to be normal);
of a single run where its held-out rows say more than a mean, of a share of rows, or over the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.errors import LabError
from llmlab.runs.curves import Point
from llmlab.runs.details import PLACES, RunDetails
from llmlab.runs.figures import is_of_suite

if TYPE_CHECKING:
    from llmlab.statistics import Interval

# options by which runs of one group may differ
OF_NO_EFFECT = (*PLACES, "seed", "report_to")
# options that decide which rows are held out and how they are cut up, and those of a model that do
HELD_OUT = ("datasets", "eval_datasets", "eval_fraction", "eval_rows", "max_length")
SUITE_ROWS = (
    "evaluation_suite",
    "evaluation_rows",
)  # options that decide which rows a suite's figures are of
CUT_BY_MODEL = ("tokenizer_name", "max_seq_len")
# held-out figures that are a share of the rows
SHARES = ("eval_rewards/accuracies", "eval_accuracy", "eval_reward_accuracy")


@dataclass(frozen=True)
class Estimate:
    """A figure of a group.

    Attributes:
        mean: over the runs of the group.
        low: end of the 95 % interval, None where there is none.
        high: its other end.
        how: what the interval is over: "seeds", "share of rows" (Wilson), "rows" (t), "evaluation" (of a
            suite, as its record has it), or "none".
        count: of those seeds or rows.
        before: mean before training, None where it was not measured.
        values: of each seed.
    """

    mean: float
    low: float | None
    high: float | None
    how: str
    count: int
    before: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """A figure of a group less that of the first one, with its 95 % interval (None of single runs)."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: a short one.
        runs: their details.
        figures: held-out figures at the end, by name.
        differences: from the first group, by name; none of the first one itself.
    """

    name: str
    runs: tuple[RunDetails, ...]
    figures: dict[str, Estimate]
    differences: dict[str, Difference]

    @property
    def seeds(self) -> tuple[Any, ...]:
        """The seeds of its runs."""
        return tuple(run.record.get("seed") for run in self.runs)

    def curves(self, name: str) -> list[list[Point]]:
        """Returns the curve of each run that logged a figure."""
        return [run.curves[name] for run in self.runs if name in run.curves]


@dataclass(frozen=True)
class Comparison:
    """Groups of runs beside each other.

    Attributes:
        groups: in the order in which their first runs were named.
        options: options that differ, with the value of each group.
        other_methods: whether runs of several kinds are among them; their losses are not compared.
        other_rows: whether held-out figures are not of the same rows, so that they cannot be compared.
        unfinished: runs that are not at their end.
    """

    groups: tuple[Group, ...]
    options: dict[str, tuple[Any, ...]]
    other_methods: bool
    other_rows: bool
    unfinished: tuple[str, ...]

    def figure_names(self) -> list[str]:
        """Returns the held-out figures that any group has, in the order of the first group that has them."""
        return list(dict.fromkeys(name for group in self.groups for name in group.figures))

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return {
            "groups": [
                {
                    "name": group.name,
                    "runs": [str(run.path) for run in group.runs],
                    "seeds": list(group.seeds),
                    "figures": {name: asdict(one) for name, one in group.figures.items()},
                    "differences": {name: asdict(one) for name, one in group.differences.items()},
                    "curves": [run.curves for run in group.runs],
                }
                for group in self.groups
            ],
            "options": {name: list(values) for name, values in self.options.items()},
            "other_methods": self.other_methods,
            "other_rows": self.other_rows,
            "unfinished": list(self.unfinished),
        }


def compare(runs: Sequence[RunDetails]) -> Comparison:
    """Returns runs beside each other.

    Raises:
        LabError: when they are fewer than two, or one is named twice.
    """
    paths = [run.path.resolve() for run in runs]
    if len(runs) < 2:
        raise LabError("a comparison needs two runs", remedy="llmlab runs compare RUN RUN ...")
    if len(set(paths)) < len(paths):
        twice = next(run.path for run in runs if paths.count(run.path.resolve()) > 1)
        raise LabError("is named twice", where=str(twice), remedy="name each run once")
    members = _grouped(runs)
    names = _names(members)
    groups: list[Group] = []
    for name, group in zip(names, members, strict=True):
        estimates = _estimates(group)
        groups.append(Group(name, tuple(group), estimates, _differences(groups, group[0], estimates)))
    return Comparison(
        groups=tuple(groups),
        options=_differing(members),
        other_methods=len({run.kind for run in runs}) > 1,
        other_rows=len({_held_out(group[0]) for group in members}) > 1,
        unfinished=tuple(str(run.path) for run in runs if run.status != "done"),
    )


def _grouped(runs: Iterable[RunDetails]) -> list[list[RunDetails]]:
    groups: dict[str, list[RunDetails]] = {}
    for run in runs:
        same = {name: value for name, value in _options(run).items() if name not in OF_NO_EFFECT}
        key = json.dumps([run.kind, same], sort_keys=True, default=str)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _options(run: RunDetails) -> dict[str, Any]:
    """Returns the options of a run; where another version wrote them, as they stand in its record."""
    return run.config.to_json_dict() if run.config else dict(run.record.get("config") or {})


def _names(groups: Sequence[Sequence[RunDetails]]) -> list[str]:
    """Returns a name of each group: that of its first run, with its parents where two have the same."""
    paths = [group[0].path for group in groups]
    depth = 1
    while True:
        names = [str(Path(*path.parts[-depth:])) for path in paths]
        if len(set(names)) == len(names) or depth > max(len(path.parts) for path in paths):
            break
        depth += 1
    counts = [len(group) for group in groups]
    return [name if n == 1 else f"{name} ({n} seeds)" for name, n in zip(names, counts, strict=True)]


def _differing(groups: Sequence[Sequence[RunDetails]]) -> dict[str, tuple[Any, ...]]:
    options = [_options(group[0]) for group in groups]
    kinds = tuple(group[0].kind for group in groups)
    names = dict.fromkeys(name for one in options for name in one)
    differing = {
        name: tuple(one.get(name) for one in options)
        for name in names
        if name not in OF_NO_EFFECT and len({_key(one.get(name)) for one in options}) > 1
    }
    return {"kind": kinds, **differing} if len(set(kinds)) > 1 else differing


def _held_out(run: RunDetails) -> str:
    """Returns what decides which rows the figures of a run are of."""
    options = _options(run)
    model = options.get("model")
    cut = {name: model.get(name) for name in CUT_BY_MODEL} if isinstance(model, dict) else {}
    return _key([{name: options.get(name) for name in HELD_OUT}, cut])


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _estimates(group: Sequence[RunDetails]) -> dict[str, Estimate]:
    names = dict.fromkeys(name for run in group for name in run.figures)
    return {name: _estimate(name, [run for run in group if name in run.figures]) for name in names}


def _estimate(name: str, runs: Sequence[RunDetails]) -> Estimate:
    from llmlab import statistics

    values = tuple({_seed(run): run.figures[name][1] for run in runs}.values())  # a seed counts once
    starts = [before for run in runs if (before := run.figures[name][0]) is not None]
    before = sum(starts) / len(starts) if len(starts) == len(runs) else None
    mean = sum(values) / len(values)
    of = statistics.over_seeds(values) if len(values) > 1 else _over_rows(name, runs[0])
    return Estimate(mean, of.low, of.high, of.how, of.count, before, values)


def _seed(run: RunDetails) -> str:
    return _key(run.record.get("seed", str(run.path)))


def _over_rows(name: str, run: RunDetails) -> Interval:
    """Returns the 95 % interval of a figure of one run over its held-out rows; none where the run kept
    nothing of the rows but their mean.
    """
    from llmlab import statistics

    if span := run.interval(name):
        return statistics.Interval(*span, "evaluation", 1)
    rows = run.record.get("validation_rows")
    counts = list(rows.values()) if isinstance(rows, dict) else []
    count = counts[0] if len(counts) == 1 and isinstance(counts[0], int) else 0
    value = run.figures[name][1]
    if name in SHARES and count and 0 <= value <= 1 and abs(value * count - round(value * count)) < 1e-3:
        return statistics.of_share(round(value * count), count)
    spread = run.figures.get(f"{name}_std")
    if name == "eval_reward" and spread and count and abs(spread[1] ** 2 - value * (1 - value)) < 1e-6:
        return statistics.of_share(round(value * count), count)  # its spread is that of answers worth 0 or 1
    if name == "eval_reward" and spread and count > 1 and spread[1] > 0:
        return statistics.of_mean(value, spread[1], count)
    return statistics.NO_INTERVAL


def _differences(
    before: Sequence[Group], run: RunDetails, estimates: dict[str, Estimate]
) -> dict[str, Difference]:
    """Returns how far figures are from those of the first group, where both are of one thing: a loss of one
    method, a suite's figure of the same rows.
    """
    if not before:
        return {}
    first, other = before[0].figures, before[0].runs[0]
    rows = [{name: _options(one).get(name) for name in SUITE_ROWS} for one in (run, other)]

    def comparable(name: str) -> bool:
        if is_of_suite(name):
            return rows[0] == rows[1]
        return other.kind == run.kind or not name.endswith("loss")

    shared = (name for name in estimates if name in first and comparable(name))
    return {name: _difference(estimates[name], first[name]) for name in shared}


def _difference(one: Estimate, first: Estimate) -> Difference:
    from llmlab import statistics

    mean = one.mean - first.mean
    if len(one.values) < 2 or len(first.values) < 2 or len({*one.values}) + len({*first.values}) == 2:
        return Difference(mean)
    of = statistics.difference_of_means(one.values, first.values)
    return Difference(mean, of.low, of.high)
