"""What assessors found: rates of each model, wins of comparisons, and how far the assessors agree.

The first category counts as the good one where two models are compared by their rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llmlab import statistics
from llmlab.errors import LabError
from llmlab.evaluation.agreement import Overall, Pairwise, overall, pairwise
from llmlab.evaluation.assessment import (
    EQUAL,
    FIRST,
    UNSURE,
    Judgement,
    Judgements,
    Mode,
    assessors,
    standing_on,
)
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.judged_items import GivenAnswer, Item, given_answers, pairs_if_any, single_items
from llmlab.evaluation.results import in_words
from llmlab.statistics import Interval, PairedDifference

ALL = "all"
MEASURE = "judgement"  # and the name of its source


@dataclass(frozen=True)
class Rate:
    """How often an assessor, or all of them, put a model's answers into a category."""

    model: str
    assessor: str
    category: str
    count: int
    judged: int
    interval: Interval

    @property
    def share(self) -> float:
        """Of the answers that were judged."""
        return self.count / self.judged


@dataclass(frozen=True)
class Wins:
    """Comparisons of two models by an assessor, or by all of them.

    Attributes:
        assessor: who.
        models: the two.
        won: by each.
        equal: as good as each other.
        unsure: could not be told.
        interval: of the first model's share of what was won.
        p: probability of such a share or a rarer one if both were alike (sign test); None of several
            assessors, whose votes on one prompt are not of their own.
    """

    assessor: str
    models: tuple[str, str]
    won: tuple[int, int]
    equal: int
    unsure: int
    interval: Interval
    p: float | None

    @property
    def share(self) -> float | None:
        """The first model's share of what was won; None where nothing was."""
        return self.won[0] / sum(self.won) if sum(self.won) else None


@dataclass(frozen=True)
class Assessed:
    """The result of an assessment.

    Attributes:
        name: of the evaluation.
        assessors: who judged.
        answers: that can be judged.
        rates: by model, assessor and category.
        difference: of the two models' rates of the first category, and its name; None where not both were
            judged.
        wins: of comparisons.
        same: pairs of answers that are the same, which nobody was asked about.
        agreement: of every two assessors, by what was judged ("single", "pairs").
        overall: of all of them.
        notes: that were written, with the assessor and the answers' keys.
    """

    name: str
    assessors: list[str]
    answers: int
    rates: list[Rate] = field(default_factory=list)
    difference: tuple[str, tuple[str, str], PairedDifference] | None = None
    wins: list[Wins] = field(default_factory=list)
    same: int = 0
    agreement: dict[str, list[Pairwise]] = field(default_factory=dict)
    overall: dict[str, Overall] = field(default_factory=dict)
    notes: list[tuple[str, tuple[str, ...], str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        data = asdict(self)
        for kept, rate in zip(data["rates"], self.rates, strict=True):
            kept["share"] = rate.share
        for kept, wins in zip(data["wins"], self.wins, strict=True):
            kept["share"] = wins.share
        if self.difference:
            category, models, found = self.difference
            data["difference"] = {"category": category, "models": list(models), **asdict(found)}
        return data


def assessed(folder: EvaluationFolder) -> Assessed:
    """Returns what assessors found in an evaluation.

    Raises:
        LabError: when nobody has judged it, or a file cannot be read.
    """
    given = given_answers(folder)
    by_key = {one.key: one for one in given}
    said: dict[Mode, dict[str, list[Judgement]]] = {"single": {}, "pairs": {}}
    models = list(dict.fromkeys(one.model for one in given))
    pairs, same = pairs_if_any(given)
    items: dict[Mode, list[Item]] = {"single": single_items(given), "pairs": pairs}
    for mode, each in items.items():
        for name in assessors(folder.path):
            if kept := standing_on(Judgements.of(folder.path, name, mode), each):
                said[mode][name] = kept
    who = sorted({*said["single"], *said["pairs"]})
    terms = [Judgements.of(folder.path, name, "single").terms for name in who]
    categories = list(dict.fromkeys(name for one in terms if one for name in one.categories))
    if not who:
        raise LabError(
            "nobody has judged it yet", where=str(folder.path), remedy=f"`llmlab assess {folder.name}`"
        )
    labels: dict[str, dict[str, dict[str, str]]] = {
        "single": {name: {one.item: one.verdict for one in each} for name, each in said["single"].items()},
        "pairs": {
            name: {one.item: _winner(one, by_key) for one in each} for name, each in said["pairs"].items()
        },
    }
    found = {mode: overall(each) for mode, each in labels.items()}
    return Assessed(
        folder.name,
        who,
        len(given),
        _rates(said["single"], by_key, models, categories),
        _difference(said["single"], by_key, models, categories),
        _wins(said["pairs"], by_key, models),
        len(same) if said["pairs"] else 0,
        {mode: both for mode, each in labels.items() if (both := pairwise(each))},
        {mode: all_ for mode, all_ in found.items() if all_},
        [
            (name, one.keys, one.note)
            for each in said.values()
            for name, judged in each.items()
            for one in judged
            if one.note
        ],
    )


def _cluster(answer: GivenAnswer) -> object:
    source, row, _ = answer.place
    return ("group", source, answer.group) if answer.group is not None else ("row", source, row)


def _judged(
    said: dict[str, list[Judgement]], by_key: dict[str, GivenAnswer]
) -> list[tuple[str, GivenAnswer, str]]:
    """Returns (assessor, answer, verdict); what several models answered alike is one for each of them."""
    return [
        (name, by_key[key], one.verdict) for name, each in said.items() for one in each for key in one.keys
    ]


def _rates(
    said: dict[str, list[Judgement]],
    by_key: dict[str, GivenAnswer],
    models: Sequence[str],
    categories: Sequence[str],
) -> list[Rate]:
    judged = _judged(said, by_key)
    people = [*said, *([ALL] if len(said) > 1 else [])]
    rates = []
    for model in models:
        for person in people:
            rows = [row for row in judged if row[1].model == model and person in (row[0], ALL)]
            clusters = statistics.numbered([_cluster(answer) for _, answer, _ in rows])
            for category in categories if rows else ():
                hits = [float(verdict == category) for _, _, verdict in rows]
                interval = statistics.interval(statistics.mean_of(hits, clusters))
                rates.append(Rate(model, person, category, int(sum(hits)), len(rows), interval))
    return rates


def _difference(
    said: dict[str, list[Judgement]],
    by_key: dict[str, GivenAnswer],
    models: Sequence[str],
    categories: Sequence[str],
) -> tuple[str, tuple[str, str], PairedDifference] | None:
    """Returns the difference of two models' rates, on what an assessor has judged of both."""
    judged = _judged(said, by_key)
    if len(models) != 2 or not judged:
        return None
    category = categories[0]
    hits: dict[tuple[str, Any], dict[str, float]] = {}
    for name, answer, verdict in judged:
        hits.setdefault((name, answer.place), {})[answer.model] = float(verdict == category)
    both = {place: each for place, each in hits.items() if len(each) == 2}
    if len(both) < 2:
        return None
    clusters = statistics.numbered([place for _, place in both])
    one, other = (statistics.mean_of([each[model] for each in both.values()], clusters) for model in models)
    return category, (models[0], models[1]), statistics.compare(one, other)


def _winner(judgement: Judgement, by_key: dict[str, GivenAnswer]) -> str:
    """Returns what a comparison says: the name of the better model, equal, or unsure."""
    if judgement.verdict in (EQUAL, UNSURE):
        return judgement.verdict
    return by_key[judgement.keys[judgement.verdict != FIRST]].model


def _wins(
    said: dict[str, list[Judgement]], by_key: dict[str, GivenAnswer], models: Sequence[str]
) -> list[Wins]:
    if len(models) != 2 or not said:
        return []
    from scipy import stats

    found = []
    for person in [*said, *([ALL] if len(said) > 1 else [])]:
        votes = [
            (by_key[one.keys[0]], _winner(one, by_key))
            for name, each in said.items()
            if person in (name, ALL)
            for one in each
        ]
        decided = [(answer, float(who == models[0])) for answer, who in votes if who in models]
        clusters = statistics.numbered([_cluster(answer) for answer, _ in decided])
        first = int(sum(value for _, value in decided))
        interval = Interval(None, None, "none", 0)
        if decided:
            interval = statistics.interval(statistics.mean_of([value for _, value in decided], clusters))
        found.append(
            Wins(
                person,
                (models[0], models[1]),
                (first, len(decided) - first),
                sum(who == EQUAL for _, who in votes),
                sum(who == UNSURE for _, who in votes),
                interval,
                float(stats.binomtest(first, len(decided)).pvalue) if decided and clusters is None else None,
            )
        )
    return found


def keep_result(folder: EvaluationFolder) -> Assessed:
    """Writes what assessors found into the evaluation's record, and returns it.

    Raises:
        LabError: when it cannot be written, or nobody has judged it.
    """
    result = assessed(folder)
    with folder.lock():
        record = folder.record
        folder.write(record | as_record(result, record))
    return result


def judged(folder: EvaluationFolder, record: dict[str, Any]) -> dict[str, Any]:
    """Returns what a record has to say of what assessors found; nothing where nobody has judged, or a file
    of judgements is damaged, which `assess --results` tells.
    """
    if not assessors(folder.path):
        return {}
    try:
        return as_record(assessed(folder), record)
    except LabError:
        return {}


def as_record(result: Assessed, record: dict[str, Any]) -> dict[str, Any]:
    """Returns the results and differences of a record with those of an assessment: a source of its own,
    `judgement`, beside those that were measured.
    """
    roles = {one["name"]: one["role"] for one in record.get("models") or ()}
    others = [one for one in record.get("results") or () if one.get("measure") != MEASURE]
    between = [one for one in record.get("differences") or () if one.get("source") != MEASURE]
    return {
        "results": [*others, *_as_results(result, roles)],
        "differences": [*between, *_as_differences(result)],
        "assessment": result.to_json(),
    }


def _as_results(result: Assessed, roles: dict[str, str]) -> list[dict[str, Any]]:
    """Returns the rates by all assessors as results of an evaluation, one for each model."""
    who = ALL if len(result.assessors) > 1 else result.assessors[0]
    found: dict[str, dict[str, Any]] = {}
    for rate in result.rates:
        if rate.assessor in (who, ALL) and rate.model in roles:
            one = found.setdefault(
                rate.model,
                {
                    "role": roles[rate.model],
                    "model": rate.model,
                    "source": MEASURE,
                    "measure": MEASURE,
                    "rows": rate.judged,
                    "reading": {},
                    "notes": [],
                    "figures": {},
                },
            )
            one["figures"][rate.category] = {"value": rate.share, **asdict(rate.interval)}
    return list(found.values())


def _as_differences(result: Assessed) -> list[dict[str, Any]]:
    if not result.difference:
        return []
    category, models, found = result.difference
    return [
        {
            "source": MEASURE,
            "figure": category,
            "model": models[0],
            "against": models[1],
            "difference": found.difference,
            "low": found.interval.low,
            "high": found.interval.high,
            "p": found.p,
            "test": found.test,
            "rows": found.rows,
            "needed": found.needed,
            "better": "higher",
            "words": in_words(found, "higher"),
        }
    ]
