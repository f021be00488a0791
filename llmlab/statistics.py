"""How sure a figure is: 95 % intervals, differences of two models with a p-value, and how many rows it takes.

A figure here is a function of totals: each row has features (right or wrong, 1; nats, tokens; the cells of a
confusion), a figure is computed from their sums. So one bootstrap serves a share, a loss per token, a macro
F1 and a calibration error alike, and rows that belong together (`clusters`: windows of one text, answers to
one question) are drawn together.

- A share of rows of their own: Wilson's interval (Wilson 1927).
- Whatever else: the BCa bootstrap of scipy (Efron 1987), at the level that is right for few clusters
  (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", expanded percentiles).
- A calibration error, which noise makes larger: below a bound by the triangle inequality, above a bootstrap.
- Means over seeds: Student's t; of a difference of two, Welch's (1947).
- Two models on the same rows, right or wrong: McNemar's test (1947) of the rows on which they differ, mid-p;
  whatever else: a paired permutation test (which model gave which answer is swapped, by cluster).
- Rows that would be needed: for a power of 80 % at the 5 % level, by the normal approximation, if the
  difference and its spread are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LEVEL, POWER = 0.95, 0.8
RESAMPLES, PERMUTATIONS = 2000, 9999
AT_ONCE = 2_000_000  # numbers of resamples that are held at a time
MOST_BCA = 2000  # clusters; with more its correction is smaller than the noise of the resamples

How = Literal["seeds", "share of rows", "rows", "bootstrap", "clusters", "evaluation", "none"]
Test = Literal["mcnemar", "permutation", "none"]
Totals = Callable[[np.ndarray], np.ndarray]  # (..., k) -> (...)


@dataclass(frozen=True)
class Interval:
    """A 95 % interval.

    Attributes:
        low: its end, None where there is none.
        high: its other end.
        how: "share of rows" (Wilson), "rows" (Student's t), "bootstrap" or, over clusters of rows,
            "clusters"; "seeds"; "evaluation", of which the record says it; "none".
        count: of the rows, clusters or seeds that it is over.
    """

    low: float | None
    high: float | None
    how: How
    count: int


NO_INTERVAL = Interval(None, None, "none", 1)


@dataclass(frozen=True)
class Sample:
    """What a figure is computed from.

    Attributes:
        features: of each row, (rows, k).
        value: the figure of totals, (..., k) -> (...).
        clusters: the number of each row's cluster, (rows,); None where each row stands for itself.
        share: whether the features are (0 or 1, 1) and the figure is their ratio.
        distance: whether the figure is the sum of |mean| of all features but the last, which is 1.
    """

    features: np.ndarray
    value: Totals
    clusters: np.ndarray | None = None
    share: bool = False
    distance: bool = False

    @property
    def figure(self) -> float:
        """The figure over all rows."""
        return float(self.value(self.features.sum(axis=0)))

    def by_cluster(self) -> np.ndarray:
        """Returns the totals of each cluster, (clusters, k)."""
        if self.clusters is None:
            return self.features
        totals = np.zeros((int(self.clusters.max()) + 1, self.features.shape[1]))
        np.add.at(totals, self.clusters, self.features)
        return totals


@dataclass(frozen=True)
class PairedDifference:
    """A figure of one model less that of another, on the same rows.

    Attributes:
        difference: of the figures.
        interval: of the difference.
        p: probability of a difference at least as large if the models were alike.
        test: how `p` was found.
        rows: compared; clusters of them, where rows belong together.
        needed: of those, for which such a difference would be found four times out of five; None where there
            is no difference, or no spread.
    """

    difference: float
    interval: Interval
    p: float
    test: Test
    rows: int
    needed: int | None

    @property
    def clear(self) -> bool:
        """Whether the difference is distinguishable from none at the 5 % level."""
        return self.p < 1 - LEVEL


def ratio(totals: np.ndarray) -> np.ndarray:
    """Returns the first total by the second: a share, a mean, a loss per token."""
    values, weights = totals[..., 0], totals[..., 1]
    return np.asarray(np.divide(values, weights, out=np.zeros(values.shape), where=weights != 0))


def mean_of(values: Sequence[float], clusters: np.ndarray | None = None) -> Sample:
    """Returns the sample of a mean, which is a share where all values are 0 or 1."""
    column = np.asarray(values, float)
    share = bool(np.isin(column, (0.0, 1.0)).all())
    return Sample(np.stack([column, np.ones(len(column))], axis=1), ratio, clusters, share)


def numbered(groups: Sequence[object]) -> np.ndarray | None:
    """Returns the number of each row's group; None where each row has its own."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return None if len(numbers) == len(groups) else np.array([numbers[group] for group in groups])


def interval(sample: Sample, *, seed: int = 0) -> Interval:
    """Returns the 95 % interval of a figure; none of fewer than two rows or clusters."""
    totals = sample.by_cluster()
    if sample.share and sample.clusters is None:
        return of_share(round(float(totals[:, 0].sum())), len(totals))
    how: How = "bootstrap" if sample.clusters is None else "clusters"
    if len(totals) < 2:
        return Interval(None, None, "none", len(totals))
    low, high = (
        _of_distance(totals, sample.value, seed)
        if sample.distance
        else _bootstrap(totals, sample.value, seed)[:2]
    )
    if low == high and sample.share:  # all clusters alike: what so many rows of their own would say
        wilson = of_share(round(sample.figure * len(totals)), len(totals))
        return Interval(wilson.low, wilson.high, how, len(totals))
    if low == high:  # rows that are all alike say nothing of how far others may differ
        return Interval(None, None, "none", len(totals))
    return Interval(low, high, how, len(totals))


def of_share(hits: int, count: int) -> Interval:
    """Returns Wilson's interval of a share of rows."""
    from scipy import stats

    if not count:
        return Interval(None, None, "none", 0)
    found = stats.binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return Interval(float(found.low), float(found.high), "share of rows", count)


def of_mean(mean: float, spread: float, count: int, how: How = "rows") -> Interval:
    """Returns Student's interval of a mean.

    Args:
        mean: over the values.
        spread: their standard deviation, with count - 1 in its denominator.
        count: of the values, at least 2.
        how: what they are of.
    """
    from scipy import stats

    if not spread:
        return Interval(mean, mean, how, count)
    low, high = stats.t.interval(LEVEL, count - 1, loc=mean, scale=spread / count**0.5)
    return Interval(float(low), float(high), how, count)


def over_seeds(values: Sequence[float]) -> Interval:
    """Returns Student's interval of a mean over seeds, of which there are at least two."""
    from scipy import stats

    error = float(stats.sem(values))
    return of_mean(sum(values) / len(values), error * len(values) ** 0.5, len(values), "seeds")


def difference_of_means(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Returns Welch's interval of a difference of means over seeds; their spreads need not be equal."""
    from scipy import stats

    found = stats.ttest_ind(one, other, equal_var=False).confidence_interval(LEVEL)
    return Interval(float(found.low), float(found.high), "seeds", len(one) + len(other))


def compare(one: Sample, other: Sample, *, seed: int = 0) -> PairedDifference:
    """Returns the figure of one model less that of another.

    Args:
        one: of the first model.
        other: of the second one, on the same rows in the same order.
        seed: of the resamples.
    """
    first, second = one.by_cluster(), other.by_cluster()
    count, width = len(first), first.shape[1]
    difference = one.figure - other.figure
    both = np.concatenate([first, second], axis=1)

    def value(totals: np.ndarray) -> np.ndarray:
        return np.asarray(one.value(totals[..., :width]) - other.value(totals[..., width:]))

    if count < 2:
        return PairedDifference(difference, Interval(None, None, "none", count), 1.0, "none", count, None)
    how: How = "bootstrap" if one.clusters is None else "clusters"
    p, test = 1.0, "permutation"
    if one.share and other.share and one.clusters is None:
        how = "share of rows"
        p, test = mcnemar(first[:, 0], second[:, 0]), "mcnemar"
        low, high, error = _of_difference(first[:, 0], second[:, 0])
    else:
        p = _permutation(first, second, one.value, other.value, seed)
        low, high, error = _bootstrap(both, value, seed)
    needed = None if not difference or not error else _needed(count, difference, error)
    return PairedDifference(difference, Interval(low, high, how, count), p, test, count, needed)  # type: ignore[arg-type]


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the p-value of McNemar's test of the rows on which two models differ.

    The exact test is a binomial one, and cautious: it sees a difference that is none in 3 to 4 % of cases,
    not in 5 %. With half of the probability of what was seen (mid-p) it is about 5 % (Fagerland, Lydersen,
    Laake 2013).

    Args:
        one: 1 where the first model is right, else 0, (rows,).
        other: the same of the second.
    """
    from scipy import stats

    fewer, more = sorted((int((one > other).sum()), int((other > one).sum())))
    if fewer == more:
        return 1.0
    exact = stats.binomtest(fewer, fewer + more).pvalue
    return float(exact - stats.binom.pmf(fewer, fewer + more, 0.5))


def _of_difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Returns the ends of the interval of a difference of two shares of the same rows, and its standard
    error: Wald's with half a row more in each of the four cells (Agresti and Min 2005). A bootstrap of few
    rows that differ would never turn the difference around.
    """
    from scipy import stats

    only_one, only_other = float((one > other).sum()) + 0.5, float((other > one).sum()) + 0.5
    rows = len(one) + 2
    difference = (only_one - only_other) / rows
    error = float(np.sqrt(only_one + only_other - (only_one - only_other) ** 2 / rows)) / rows
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * error
    return difference - half, difference + half, error


def _needed(rows: int, difference: float, error: float) -> int:
    """Returns the rows for which such a difference is found with `POWER`."""
    from scipy import stats

    quantiles = stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER)
    return int(np.ceil(rows * (quantiles * error / abs(difference)) ** 2))


def _figures(totals: np.ndarray, value: Totals) -> Callable[..., np.ndarray]:
    """Returns a statistic of the numbers of clusters, as scipy resamples them: (..., n) -> (...)."""
    count = len(totals)

    def figures(numbers: np.ndarray, axis: int = -1) -> np.ndarray:
        drawn = np.atleast_2d(numbers.astype(np.int64)).reshape(-1, numbers.shape[-1])
        places = drawn + np.arange(len(drawn))[:, None] * count
        times = np.bincount(places.ravel(), minlength=len(drawn) * count).reshape(-1, count)
        return np.asarray(value(times @ totals)).reshape(numbers.shape[:-1])

    return figures


def _bootstrap(totals: np.ndarray, value: Totals, seed: int) -> tuple[float, float, float]:
    """Returns the ends of the interval of a figure of cluster totals, and its standard error."""
    from scipy import stats

    count = len(totals)
    found: Any = value(totals.sum(axis=0))
    if not (totals != totals[0]).any():  # nothing to resample
        return float(found), float(found), 0.0
    # few clusters: the level at which a bootstrap of a mean is as wide as Student's interval
    tail = stats.norm.cdf(-((count / (count - 1)) ** 0.5) * stats.t.ppf((1 + LEVEL) / 2, count - 1))
    result: Any = None
    for method in ("BCa", "percentile") if count <= MOST_BCA else ("percentile",):
        with np.errstate(all="ignore"):
            result = _quietly(
                stats.bootstrap,
                (np.arange(count),),
                _figures(totals, value),
                n_resamples=RESAMPLES,
                batch=max(1, min(RESAMPLES, AT_ONCE // count)),
                vectorized=True,
                confidence_level=1 - 2 * tail,
                method=method,
                rng=np.random.default_rng(seed),
            )
        if np.isfinite(result.confidence_interval).all():
            break
    low, high = result.confidence_interval
    return float(low), float(high), float(result.standard_error)


def _of_distance(totals: np.ndarray, value: Totals, seed: int) -> tuple[float, float]:
    """Returns the ends of the interval of a distance from nothing, which noise alone makes larger.

    A bootstrap of the distance would never hold 0. Below, by the triangle inequality: the distance is at most
    as much too large as the resampled means are apart from the measured ones, at the 95 % quantile. Above: as
    far as resampled distances lie below their mean, at the 2.5 % quantile.
    """
    count = len(totals)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    drawn, whole = times @ totals, totals.sum(axis=0)
    apart = np.abs(drawn[:, :-1] / drawn[:, -1:] - whole[:-1] / whole[-1]).sum(axis=1)
    distances, found = value(drawn), float(value(whole))
    low = max(0.0, found - float(np.quantile(apart, LEVEL)))
    return low, found + float(distances.mean() - np.quantile(distances, (1 - LEVEL) / 2))


def _quietly(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Calls a function of scipy without its warning of a degenerate distribution: there is a way out here."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **named)


def _permutation(
    first: np.ndarray, second: np.ndarray, value: Totals, other_value: Totals, seed: int
) -> float:
    """Returns the p-value of a paired permutation test of cluster totals."""
    from scipy import stats

    count = len(first)
    if (first == second).all():
        return 1.0
    both = np.concatenate([first, second])
    one, other = _figures(both, value), _figures(both, other_value)
    most = max(999, min(PERMUTATIONS, 100 * AT_ONCE // count))
    result = stats.permutation_test(
        (np.arange(count), np.arange(count) + count),
        lambda left, right, axis: one(left) - other(right),
        permutation_type="samples",
        vectorized=True,
        n_resamples=most,
        batch=max(1, AT_ONCE // (2 * count)),
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
