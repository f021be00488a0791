"""How far assessors agree beyond chance: Cohen's kappa of two, Krippendorff's alpha of any number.

Kappa and its interval are statsmodels' (Cohen 1960; Fleiss, Cohen and Everitt 1969), alpha is NLTK's for
nominal data (Krippendorff 1980), which takes items that not everybody has judged. Libraries are imported
where they are called: they take a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmlab import statistics

Said = Mapping[str, Mapping[str, str]]  # assessor -> item -> label


@dataclass(frozen=True)
class Pairwise:
    """The agreement of two assessors.

    Attributes:
        assessors: the two.
        items: that both have judged.
        agreed: share of them on which they say the same.
        kappa: Cohen's; None where both used one category alone, of which chance explains all.
        low: end of its 95 % interval.
        high: the other end.
    """

    assessors: tuple[str, str]
    items: int
    agreed: float
    kappa: float | None
    low: float | None
    high: float | None


def pairwise(said: Said) -> list[Pairwise]:
    """Returns the agreement of every two assessors that have judged an item in common."""
    found = []
    for one, other in itertools.combinations(sorted(said), 2):
        common = sorted(said[one].keys() & said[other].keys())
        if common:
            found.append(_of_two((one, other), [(said[one][item], said[other][item]) for item in common]))
    return found


def _of_two(assessors: tuple[str, str], labels: list[tuple[str, str]]) -> Pairwise:
    names = sorted({label for both in labels for label in both})
    table = np.zeros((len(names), len(names)))
    for one, other in labels:
        table[names.index(one), names.index(other)] += 1
    agreed = float(np.trace(table) / len(labels))
    if len(names) == 1:
        return Pairwise(assessors, len(labels), agreed, None, None, None)
    from statsmodels.stats.inter_rater import cohens_kappa

    with np.errstate(invalid="ignore", divide="ignore"):  # where one of them says the same of everything
        result = cohens_kappa(table)
    known = result.std_kappa > 0
    ends = [
        float(end) if known and np.isfinite(end) else None for end in (result.kappa_low, result.kappa_upp)
    ]
    return Pairwise(assessors, len(labels), agreed, float(result.kappa), ends[0], ends[1])


@dataclass(frozen=True)
class Overall:
    """The agreement of all assessors.

    Attributes:
        assessors: how many there are.
        items: that at least two have judged.
        alpha: Krippendorff's; None where only one category was used.
        low: end of its 95 % interval, a bootstrap over items; None where there is none.
        high: the other end.
    """

    assessors: int
    items: int
    alpha: float | None
    low: float | None = None
    high: float | None = None


def overall(said: Said) -> Overall | None:
    """Returns the agreement of all assessors; None where no item was judged by two."""
    by_item: dict[str, list[str]] = {}
    for labels in said.values():
        for item, label in labels.items():
            by_item.setdefault(item, []).append(label)
    shared = {item: labels for item, labels in by_item.items() if len(labels) > 1}
    if not shared:
        return None
    if len({label for labels in shared.values() for label in labels}) == 1:
        return Overall(len(said), len(shared), None)
    from nltk.metrics.agreement import AnnotationTask

    triples = [(name, item, label) for name, labels in said.items() for item, label in labels.items()]
    found = statistics.interval(alpha_of_items([*shared.values()]))
    alpha = float(AnnotationTask(data=triples).alpha())
    return Overall(len(said), len(shared), alpha, found.low, found.high)


def alpha_of_items(items: Sequence[Sequence[str]]) -> statistics.Sample:
    """Returns the sample of Krippendorff's alpha for nominal data, 1 - D_o / D_e (Krippendorff 2011,
    "Computing Krippendorff's Alpha-Reliability"): of each item its disagreeing pairs by one less than its
    labels, then how often it has each label; both disagreements are functions of their sums.

    Args:
        items: the labels of each, at least two.
    """
    names = sorted({label for labels in items for label in labels})
    counts = np.array([[labels.count(name) for name in names] for labels in map(list, items)], float)
    sizes = counts.sum(axis=1)
    disagreeing = (sizes**2 - (counts**2).sum(axis=1)) / (sizes - 1)

    def alpha(totals: np.ndarray) -> np.ndarray:
        observed, each = totals[..., 0], totals[..., 1:]
        labels = each.sum(axis=-1)
        expected = (labels**2 - (each**2).sum(axis=-1)) / (labels - 1)
        ratio = np.divide(observed, expected, out=np.zeros(observed.shape), where=expected > 0)
        return np.asarray(1 - ratio)

    return statistics.Sample(np.column_stack([disagreeing, counts]), alpha)
