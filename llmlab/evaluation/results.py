"""What saved answers say, as records: figures of a model on a source, and differences of two models.
No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmlab import statistics
from llmlab.evaluation.agreement import pairwise
from llmlab.evaluation.benchmarks import MEASURE, better_of
from llmlab.evaluation.figures import (
    Answer,
    clusters_of,
    compare,
    figures_of,
    figures_of_benchmark,
    in_order,
)
from llmlab.evaluation.subjects import JUDGE
from llmlab.runs.figures import BETTER
from llmlab.statistics import PairedDifference, mean_of


def result_of(about: dict[str, Any], answers: Sequence[Answer], seed: int) -> dict[str, Any]:
    """Returns the figures of a model's answers to a source, beside how its rows were read."""
    if about["measure"] == MEASURE:
        found = figures_of_benchmark(answers, about["values"], seed=seed)
    else:
        found = figures_of(about["measure"], answers, seed=seed)
    result = {**about, "figures": {name: figure.to_json() for name, figure in found.figures.items()}}
    if found.labels:
        result |= {"labels": found.labels, "confusion": found.confusion}
    if found.calibration:
        result["reliability"] = [asdict(one) for one in found.calibration.bins]
    return _with_kappa(result, answers) if about.get("role") == JUDGE else result


def _with_kappa(result: dict[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns the figures of a judge's check with Cohen's kappa: its agreement with the labels beyond
    chance, what was unreadable being a word of its own.
    """
    said = {
        "judge": {str(one["row"]): one["answer"] or "unreadable" for one in answers},
        "labels": {str(one["row"]): str(one["reference"]) for one in answers},
    }
    for both in pairwise(said):
        if both.kappa is not None:
            ends = {"low": both.low, "high": both.high, "how": "rows", "count": both.items}
            result["figures"]["kappa"] = {"value": both.kappa, **ends}
    return result


def differences(
    measure: str,
    source: str,
    models: tuple[str, str],
    answers: tuple[Sequence[Answer], Sequence[Answer]],
    seed: int,
) -> list[dict[str, Any]]:
    """Returns each figure of a model less that of another one, with how sure that is.

    Args:
        measure: of the answers.
        source: that they are to.
        models: the evaluated one and the other.
        answers: of both.
        seed: of the resamples.
    """
    found = compare(measure, *answers, seed=seed)
    better: dict[str, Any] = {**BETTER}
    if measure == MEASURE:
        better = {name: better_of(name, answers[0]) for name in found}
    return [
        {
            "source": source,
            "figure": name,
            "model": models[0],
            "against": models[1],
            "difference": one.difference,
            "low": one.interval.low,
            "high": one.interval.high,
            "p": one.p,
            "test": one.test,
            "rows": one.rows,
            "needed": one.needed,
            "better": better.get(name),
            "words": in_words(one, better.get(name), unit_of(measure, answers[0])),
        }
        for name, one in found.items()
    ]


def unit_of(measure: str, answers: Sequence[Answer]) -> str:
    """Returns what is counted, in a word: what the intervals are over."""
    if any(one.get("group") is not None for one in answers):
        return "groups"
    texts = clusters_of(measure, answers) is not None
    units = {"text": "texts" if texts else "windows", "preference": "pairs"}
    return units.get(measure, "questions" if measure in ("answer", "judged", "reward") else "rows")


def in_words(one: PairedDifference, better: str | None, unit: str = "rows") -> str:
    """Returns what a difference means: "better", or "not distinguishable on 200 questions; about 1,400 would
    be needed".
    """
    if one.test == "none":
        return f"too few {unit} to say"
    if one.clear:
        if better is None:
            return "higher" if one.difference > 0 else "lower"
        return "better" if (one.difference > 0) == (better == "higher") else "worse"
    if not one.difference:
        return f"no difference on {one.rows:,} {unit}"
    if one.needed is None or one.needed <= one.rows:
        return f"not distinguishable on {one.rows:,} {unit}"
    return f"not distinguishable on {one.rows:,} {unit}; about {_rounded(one.needed):,} would be needed"


def _rounded(count: int) -> int:
    """Returns a number of rows to two digits: it is an estimate."""
    size: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // size) * size


def win_rates(one: Sequence[Answer], other: Sequence[Answer], *, seed: int) -> dict[str, Any]:
    """Returns the other's mean reward; how often the first one's answer is worth more, or as much."""
    first, second = in_order(one), in_order(other)
    clusters = clusters_of("reward", first)
    scores = [(a["score"], b["score"]) for a, b in zip(first, second, strict=True)]
    samples = {
        "reward_of_the_other": mean_of([there for _, there in scores], clusters),
        "win_rate": mean_of([float(here > there) for here, there in scores], clusters),
        "ties": mean_of([float(here == there) for here, there in scores], clusters),
    }
    return {
        name: {"value": sample.figure, **asdict(statistics.interval(sample, seed=seed))}
        for name, sample in samples.items()
    }
