"""Figures of saved answers, each with its 95 % interval; and of two models beside each other. No torch.

What a figure is follows from the measure of the answers. All of them are functions of sums over rows, so that
neither the order nor the batches in which answers came change one: they are added up in the order of rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from llmlab import statistics
from llmlab.data.verdicts import UNREADABLE, VERDICTS
from llmlab.evaluation.benchmarks import samples_of_benchmark
from llmlab.evaluation.calibration import Bin, calibration_error, reliability
from llmlab.statistics import NO_INTERVAL, Interval, PairedDifference, Sample, mean_of, numbered, ratio

Answer = dict[str, Any]
FEW_TEXTS = 5  # with fewer, windows are drawn for the intervals, not texts


@dataclass(frozen=True)
class Figure:
    """A figure and how sure it is.

    Attributes:
        value: of all rows.
        interval: the 95 % one.
        seeds: its value for each repeat of sampled answers; empty without repeats.
    """

    value: float
    interval: Interval
    seeds: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON data; with repeats also their mean and the interval of it over seeds."""
        data: dict[str, Any] = {"value": self.value, **asdict(self.interval)}
        if len(self.seeds) > 1:
            of = statistics.over_seeds(self.seeds)
            spread = float(np.std(self.seeds, ddof=1))
            data["seeds"] = {"values": list(self.seeds), "spread": spread, "low": of.low, "high": of.high}
        return data


@dataclass(frozen=True)
class Calibration:
    """How well the probabilities of label words are what they say: a reliability table."""

    bins: list[Bin]


@dataclass(frozen=True)
class Figures:
    """The figures of one model on one source.

    Attributes:
        figures: by name, in order.
        samples: what they were computed from, of those that have an interval.
        labels: words of a classification.
        confusion: rows of the right word, columns of the given one, the last for none.
        calibration: of a classification by score.
    """

    figures: dict[str, Figure]
    samples: dict[str, Sample]
    labels: list[str] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    calibration: Calibration | None = None


def figures_of(measure: str, answers: Sequence[Answer], *, seed: int = 0, exact: bool = True) -> Figures:
    """Returns the figures of a model's answers to one source.

    Args:
        measure: of the answers.
        answers: of all rows, in any order.
        seed: of the resamples.
        exact: whether intervals are wanted; they take most of the time.
    """
    answers = in_order(answers)
    samples = samples_of(measure, answers)
    plain = {} if measure != "label" else {"majority": _majority(answers)}
    figures = {}
    for name, sample in samples.items():
        found = statistics.interval(sample, seed=seed) if exact else NO_INTERVAL
        figures[name] = Figure(sample.figure, found, _by_repeat(measure, answers, name))
        if name == "macro_f1":  # beside what always the most frequent word would give
            figures["majority"] = Figure(plain["majority"], NO_INTERVAL)
    if measure != "label":
        return Figures(figures, samples)
    labels = _labels(answers)
    calibration = None
    if "calibration_error" in samples:
        confidence, right = _confidences(answers)
        calibration = Calibration(reliability(confidence, right))
    return Figures(figures, samples, labels, _confusion(answers, labels), calibration)


def figures_of_benchmark(answers: Sequence[Answer], values: dict[str, float], *, seed: int = 0) -> Figures:
    """Returns the figures of a benchmark as lm-eval has computed them, with an interval where the rows say
    the same.

    Args:
        answers: of all rows, in any order; none of a group of tasks.
        values: the figures.
        seed: of the resamples.
    """
    samples = samples_of_benchmark(in_order(answers))
    figures = {}
    for name, value in values.items():
        sample = samples.get(name)
        same = sample is not None and math.isclose(sample.figure, value, rel_tol=1e-9, abs_tol=1e-12)
        figures[name] = Figure(
            value, statistics.interval(sample, seed=seed) if sample and same else NO_INTERVAL
        )
    return Figures(figures, samples)


def is_whole(measure: str, one: Answer) -> bool:
    """Returns whether an answer holds all that its figures are computed from."""
    of_judge = measure == "label" and "judge_said" in one  # a server says no log-probability
    needed = ["tokens", *([] if of_judge else ["log_prob"]), *(["bytes"] if measure == "text" else [])]
    needed += ["score"] if measure in ("label", "answer", "reward", "preference", "judged") else []
    numbers = all(isinstance(one.get(name), int | float) for name in needed)
    log_probs = one.get("log_probs") or {}
    return (
        numbers
        and (measure != "judged" or one.get("verdict") in (*VERDICTS, UNREADABLE))
        and isinstance(one.get("answer"), str)
        and isinstance(log_probs, dict)
        and all(isinstance(value, int | float) for value in log_probs.values())
        and (measure != "label" or isinstance(one.get("reference"), str))
    )


def in_order(answers: Iterable[Answer]) -> list[Answer]:
    """Returns answers by row and part, as no computation depends on when they came."""
    return sorted(answers, key=lambda one: (one["row"], one.get("part") or 0))


def samples_of(measure: str, answers: Sequence[Answer]) -> dict[str, Sample]:
    """Returns what each figure is computed from.

    Args:
        measure: of the answers.
        answers: in order.
    """
    clusters = clusters_of(measure, answers)
    match measure:
        case "label":
            return _of_labels(answers, clusters)
        case "answer":
            return {"exact_match": mean_of([one["score"] for one in answers], clusters)}
        case "judged":
            return _of_verdicts(answers, clusters)
        case "reward":
            return {"reward": mean_of([one["score"] for one in answers], clusters)}
        case "preference":
            return _of_pairs(answers, clusters)
        case "text":
            nats = [-one["log_prob"] for one in answers]
            return {
                "loss": _rate(nats, [one["tokens"] for one in answers], clusters),
                "bits_per_byte": _rate(
                    [value / math.log(2) for value in nats], [one["bytes"] for one in answers], clusters
                ),
            }
        case "conversation":
            nats = [-one["log_prob"] for one in answers]
            return {"loss": _rate(nats, [one["tokens"] for one in answers], clusters)}
        case "benchmark":
            return samples_of_benchmark(answers)
    return {"score": mean_of([one["score"] for one in answers], clusters)}


def clusters_of(measure: str, answers: Sequence[Answer]) -> np.ndarray | None:
    """Returns the cluster of each answer: its group, else its row (windows of a text, repeats); of few texts
    each window stands for itself. None where every answer does.
    """
    rows = {one["row"] for one in answers}
    if measure == "text" and len(rows) < FEW_TEXTS and not any(one.get("group") for one in answers):
        return None
    groups = [("row", one["row"]) if one.get("group") is None else ("group", one["group"]) for one in answers]
    return numbered(groups)


def compare(
    measure: str, one: Sequence[Answer], other: Sequence[Answer], *, seed: int = 0
) -> dict[str, PairedDifference]:
    """Returns each figure of one model less that of another, on the rows that both have answered."""
    first, second = _on_the_same(in_order(one), in_order(other), measure)
    if not first:
        return {}
    here, there = samples_of(measure, first), samples_of(measure, second)
    return {
        name: statistics.compare(here[name], there[name], seed=seed)
        for name in here
        if name in there and _comparable(name, first, second)
    }


def _on_the_same(one: list[Answer], other: list[Answer], measure: str) -> tuple[list[Answer], list[Answer]]:
    """Returns answers to the same rows and parts; whole texts, where two tokenizers cut them differently."""
    places = [{(a["row"], a.get("part") or 0) for a in answers} for answers in (one, other)]
    if measure == "text" and places[0] != places[1]:
        one, other = _whole_texts(one), _whole_texts(other)
        places = [{(a["row"], 0) for a in answers} for answers in (one, other)]
    both = places[0] & places[1]
    first, second = (
        [a for a in answers if (a["row"], a.get("part") or 0) in both] for answers in (one, other)
    )
    return first, second


def _whole_texts(answers: list[Answer]) -> list[Answer]:
    rows: dict[int, list[Answer]] = {}
    for one in answers:
        rows.setdefault(one["row"], []).append(one)
    return [
        {
            "row": row,
            "part": 0,
            "group": parts[0].get("group"),
            **{name: math.fsum(part[name] for part in parts) for name in ("log_prob", "tokens", "bytes")},
        }
        for row, parts in rows.items()
    ]


def _comparable(name: str, one: list[Answer], other: list[Answer]) -> bool:
    """Returns whether a figure of two models is of the same thing: losses are, of the same tokens."""
    if name not in ("loss", "perplexity"):
        return True
    return [answer["tokens"] for answer in one] == [answer["tokens"] for answer in other]


def _rate(values: Sequence[float], weights: Sequence[float], clusters: np.ndarray | None) -> Sample:
    return Sample(np.stack([np.asarray(values, float), np.asarray(weights, float)], axis=1), ratio, clusters)


def _of_labels(answers: Sequence[Answer], clusters: np.ndarray | None) -> dict[str, Sample]:
    labels = _labels(answers)
    samples = {"accuracy": mean_of([one["score"] for one in answers], clusters)}
    samples["macro_f1"] = _macro_f1(answers, labels, clusters)
    if all(one.get("log_probs") for one in answers):
        confidence, right = _confidences(answers)
        samples["calibration_error"] = calibration_error(confidence, right, clusters)
        samples["brier_score"] = mean_of([_brier(one) for one in answers], clusters)
        samples["label_loss"] = mean_of([_label_loss(one) for one in answers], clusters)
    return samples


def _of_verdicts(answers: Sequence[Answer], clusters: np.ndarray | None) -> dict[str, Sample]:
    """Rates of the verdicts, of all answers: those that could not be read are a rate, too."""
    given = [one["verdict"] for one in answers]
    words = [*VERDICTS, *([UNREADABLE] if UNREADABLE in given else [])]
    samples = {word: mean_of([float(one == word) for one in given], clusters) for word in words}
    if all("right" in one for one in answers):
        samples["exact_match"] = mean_of([one["right"] for one in answers], clusters)
    return samples


def _macro_f1(answers: Sequence[Answer], labels: list[str], clusters: np.ndarray | None) -> Sample:
    """The mean over the labels of 2 TP / (2 TP + FP + FN); a label that is neither there nor given counts as
    0.
    """
    size = len(labels)
    place = {word: number for number, word in enumerate(labels)}
    features = np.zeros((len(answers), 2 * size))  # of each label: right, and right or given
    for row, one in enumerate(answers):
        right, given = place[one["reference"]], place.get(one["answer"])
        features[row, size + right] += 1
        if given is not None:
            features[row, size + given] += 1
        if given == right:
            features[row, right] += 1

    def value(totals: np.ndarray) -> np.ndarray:
        hits, both = totals[..., :size], totals[..., size:]
        return np.asarray(np.divide(2 * hits, both, out=np.zeros(hits.shape), where=both > 0).mean(axis=-1))

    return Sample(features, value, clusters)


def _of_pairs(answers: Sequence[Answer], clusters: np.ndarray | None) -> dict[str, Sample]:
    samples = {"preference_accuracy": mean_of([one["score"] for one in answers], clusters)}
    if not all("alpha" in one for one in answers):
        return samples
    tokens = [one["tokens"] for one in answers]
    for figure, name in (("perplexity", "fused"), ("backbone_perplexity", "backbone")):
        rate = _rate([-one[name] for one in answers], tokens, clusters)
        samples[figure] = Sample(rate.features, lambda totals: np.exp(ratio(totals)), clusters)
    for name in ("alpha", "gate_entropy"):
        samples[name] = _rate([one[name] for one in answers], tokens, clusters)
    return samples


def _labels(answers: Sequence[Answer]) -> list[str]:
    """Returns the label words, in the order of the choices."""
    words = dict.fromkeys(
        word for one in answers for word in (one.get("log_probs") or one.get("choices") or ())
    )
    return list(words | dict.fromkeys(one["reference"] for one in answers))


def _confusion(answers: Sequence[Answer], labels: list[str]) -> list[list[int]]:
    place = {word: number for number, word in enumerate(labels)}
    table = np.zeros((len(labels), len(labels) + 1), int)
    for one in answers:
        table[place[one["reference"]], place.get(one["answer"], len(labels))] += 1
    counts: list[list[int]] = table.tolist()
    return counts


def _majority(answers: Sequence[Answer]) -> float:
    """Returns the accuracy of always giving the most frequent word."""
    counts = Counter(one["reference"] for one in answers)
    return max(counts.values()) / len(answers)


def probabilities(one: Answer) -> dict[str, float]:
    """Returns how likely each label word is among the label words alone."""
    values = np.array(list(one["log_probs"].values()))
    shares = np.exp(values - values.max())
    return dict(zip(one["log_probs"], (shares / shares.sum()).tolist(), strict=True))


def _confidences(answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probability of each given word, and whether it is right."""
    confidence = np.array([max(probabilities(one).values()) for one in answers])
    return confidence, np.array([one["score"] for one in answers])


def _brier(one: Answer) -> float:
    """Returns the squared distance of the probabilities from the right answer (Brier 1950), 0 to 2."""
    shares = probabilities(one)
    return math.fsum((share - (word == one["reference"])) ** 2 for word, share in shares.items())


def _label_loss(one: Answer) -> float:
    """Returns the negative log-probability of the right word among the label words, in nats."""
    return -math.log(max(probabilities(one)[one["reference"]], 1e-300))


def _by_repeat(measure: str, answers: Sequence[Answer], name: str) -> tuple[float, ...]:
    """Returns a figure of each repeat of sampled answers."""
    if measure not in ("answer", "label", "reward", "judged"):
        return ()
    repeats = sorted({one.get("part") or 0 for one in answers})
    if len(repeats) < 2:
        return ()
    parts = ([one for one in answers if (one.get("part") or 0) == repeat] for repeat in repeats)
    return tuple(samples_of(measure, part)[name].figure for part in parts)
