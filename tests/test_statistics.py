"""Intervals and tests against closed forms, other implementations, and simulations whose truth is known.
`benchmarks/intervals.py` does the large number.
"""

import numpy as np
import pytest
from scipy import stats

from llmlab import statistics
from llmlab.evaluation.results import in_words
from llmlab.statistics import Sample, mean_of, ratio


def rates(values, weights, clusters=None):
    return Sample(np.stack([values, weights], axis=1).astype(float), ratio, clusters)


def test_a_share_has_wilsons_interval():
    """Against the formula (Wilson 1927)."""
    hits, count, z = 45, 60, stats.norm.ppf(0.975)
    share = hits / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    found = statistics.interval(mean_of([1.0] * hits + [0.0] * (count - hits)))
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))
    assert (found.how, found.count) == ("share of rows", 60)


def test_a_mean_of_many_rows_has_about_students_interval():
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = statistics.interval(mean_of(values))
    low, high = stats.t.interval(0.95, 399, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.015) and found.how == "bootstrap"


def test_rows_that_belong_together_count_once():
    """Five copies of each row say no more than one of each."""
    values = np.random.default_rng(1).normal(0, 1, 60)
    alone = statistics.interval(mean_of(values))
    copied = statistics.interval(mean_of(np.repeat(values, 5), np.repeat(np.arange(60), 5)))
    taken_apart = statistics.interval(mean_of(np.repeat(values, 5)))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high)) and copied.how == "clusters"
    assert taken_apart.high - taken_apart.low < 0.6 * (alone.high - alone.low)


def test_the_order_of_rows_and_the_seed_alone_decide():
    rng = np.random.default_rng(2)
    sample = rates(rng.gamma(2, 1, 90), rng.integers(1, 9, 90))
    assert statistics.interval(sample, seed=3) == statistics.interval(sample, seed=3)
    assert statistics.interval(sample, seed=3) != statistics.interval(sample, seed=4)


def test_nothing_is_said_of_one_row_or_of_rows_that_are_all_alike():
    assert statistics.interval(mean_of([2.5])).low is None
    assert statistics.interval(mean_of([2.5] * 9)).low is None
    clustered = statistics.interval(mean_of([1.0] * 20, np.repeat(np.arange(10), 2)))
    assert clustered.low == pytest.approx(stats.binomtest(10, 10).proportion_ci(0.95, "wilson").low)


def test_mcnemars_mid_p_is_that_of_the_rows_that_differ():
    one = np.array([1.0] * 30 + [1.0] * 12 + [0.0] * 3 + [0.0] * 15)
    other = np.array([1.0] * 30 + [0.0] * 12 + [1.0] * 3 + [0.0] * 15)
    found = statistics.compare(mean_of(one), mean_of(other))
    below = sum(stats.binom.pmf(k, 15, 0.5) for k in range(3))  # 3 of 15, both sides, itself by half
    assert found.p == pytest.approx(2 * below + stats.binom.pmf(3, 15, 0.5))
    assert found.test == "mcnemar" and found.clear
    half = 1.959964 * np.sqrt(16 - 81 / 62) / 62  # Agresti and Min: 12.5 and 3.5 of 62 rows
    assert (found.interval.low, found.interval.high) == pytest.approx((9 / 62 - half, 9 / 62 + half))
    assert found.difference == pytest.approx(9 / 60)
    assert found.interval.low < 9 / 60 < found.interval.high


def test_a_few_rows_that_differ_may_be_chance():
    one, other = mean_of([1.0] * 4 + [0.0] * 196), mean_of([0.0] * 200)
    found = statistics.compare(one, other)
    assert found.p == pytest.approx(2 / 16 / 2) and not found.clear and found.interval.low < 0


def test_a_paired_permutation_is_exact_on_few_rows():
    """All 2^6 ways to swap who said what: 2 of them are as far from nothing as what was seen."""
    ones = np.ones(6)
    one, other = rates(np.array([3.0, 4, 5, 6, 7, 8]), ones), rates(np.array([1.0, 2, 3, 4, 5, 5]), ones)
    assert statistics.compare(one, other).p == pytest.approx(2 / 64)


def two_models(rng, rows, right):
    """Right and wrong answers of two models that find the same rows hard."""
    hard = rng.random(rows)
    draws = [np.where(rng.random(rows) < 0.5, hard, rng.random(rows)) for _ in right]
    one, other = ((draw < each).astype(float) for draw, each in zip(draws, right, strict=True))
    return mean_of(one), mean_of(other)


def test_the_rows_that_are_said_to_be_needed_are_enough():
    """At that number a difference of 8 points is seen about four times out of five."""
    needed = statistics.compare(*two_models(np.random.default_rng(0), 40_000, (0.6, 0.52))).needed
    assert 250 < needed < 700
    seen = sum(
        statistics.compare(*two_models(np.random.default_rng(seed), needed, (0.6, 0.52))).p < 0.05
        for seed in range(1, 121)
    )
    assert 0.68 < seen / 120 < 0.9


def test_words_of_a_difference():
    few = statistics.compare(*two_models(np.random.default_rng(4), 200, (0.6, 0.56)))
    assert few.p > 0.05
    assert in_words(few, "higher") == (
        f"not distinguishable on 200 rows; about {-(-few.needed // 100) * 100:,} would be needed"
    )
    assert "on 200 questions; about" in in_words(few, "higher", "questions")
    many = statistics.compare(*two_models(np.random.default_rng(0), 4000, (0.6, 0.5)))
    assert in_words(many, "higher") == "better" and in_words(many, "lower") == "worse"


@pytest.mark.slow
def test_coverage_and_false_alarms():
    """Of 300 simulated evaluations; 93 to 97 % and at most 5 % are meant."""
    held = dict.fromkeys(("share", "questions", "loss"), 0)
    alarms = 0
    times = 300
    for seed in range(times):
        rng = np.random.default_rng(seed)
        found = statistics.interval(mean_of((rng.random(200) < 0.7).astype(float)))
        held["share"] += found.low <= 0.7 <= found.high
        each = np.repeat(rng.beta(3, 2, 40), 5)  # answers to one question are alike
        found = statistics.interval(
            mean_of((rng.random(200) < each).astype(float), np.repeat(np.arange(40), 5)), seed=seed
        )
        held["questions"] += found.low <= 0.6 <= found.high
        tokens = rng.integers(20, 500, 150)
        loss = np.repeat(rng.gamma(9, 1 / 3, 25), 6) * rng.gamma(16, 1 / 16, 150)
        found = statistics.interval(rates(loss * tokens, tokens, np.repeat(np.arange(25), 6)), seed=seed)
        held["loss"] += found.low <= 3 <= found.high
        alarms += statistics.compare(*two_models(rng, 200, (0.6, 0.6)), seed=seed).clear
    assert all(0.91 < count / times < 0.985 for count in held.values()), held
    assert alarms / times < 0.07
