"""Do the intervals and tests of evaluations keep their word? Simulated evaluations whose truth is known.

    python benchmarks/intervals.py --times 1000

For each kind of figure the share of 95 % intervals that hold the true value; for each paired test how often
it sees a difference between two models that are alike (at the 5 % level), and how often it sees one at the
number of rows that was said to be needed (power, 80 % is meant).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from llmlab import statistics
from llmlab.evaluation.calibration import calibration_error
from llmlab.statistics import Sample, mean_of, ratio

Draw = Callable[[np.random.Generator], Sample]
Two = Callable[[np.random.Generator], tuple[Sample, Sample]]


def share(rows: int, right: float) -> Draw:
    """Returns the drawing of right and wrong answers."""
    return lambda rng: mean_of((rng.random(rows) < right).astype(float))


def clustered_share(clusters: int, size: int, right: float, alike: float) -> Draw:
    """Returns the drawing of answers of which those of one cluster are alike: a beta-binomial."""
    a, b = right * (1 / alike - 1), (1 - right) * (1 / alike - 1)

    def draw(rng: np.random.Generator) -> Sample:
        each = np.repeat(rng.beta(a, b, clusters), size)
        return mean_of((rng.random(len(each)) < each).astype(float), np.repeat(np.arange(clusters), size))

    return draw


def loss_per_token(texts: int, windows: int) -> Draw:
    """Returns the drawing of windows of texts with losses of their own, of unequal lengths; the truth: 3."""

    def draw(rng: np.random.Generator) -> Sample:
        text = np.repeat(np.arange(texts), windows)
        tokens = rng.integers(20, 500, len(text)).astype(float)
        loss = np.repeat(rng.gamma(9, 3 / 9, texts), windows) * rng.gamma(16, 1 / 16, len(text))
        return Sample(np.stack([loss * tokens, tokens], axis=1), ratio, text)

    return draw


def macro_f1(rows: int) -> Draw:
    """Returns the drawing of a classification of three unequal labels, right four times out of five."""
    from llmlab.evaluation.figures import samples_of

    def draw(rng: np.random.Generator) -> Sample:
        words = np.array(["a", "b", "c"])
        truth = rng.choice(3, rows, p=[0.6, 0.3, 0.1])
        given = np.where(rng.random(rows) < 0.8, truth, rng.integers(0, 3, rows))
        answers = [
            {
                "row": i,
                "reference": words[t],
                "answer": words[g],
                "score": float(t == g),
                "choices": list(words),
            }
            for i, (t, g) in enumerate(zip(truth, given, strict=True))
        ]
        return samples_of("label", answers)["macro_f1"]

    return draw


def overconfident(rows: int, by: float) -> Draw:
    """Returns the drawing of confidences that are so much too high."""

    def draw(rng: np.random.Generator) -> Sample:
        confidence = rng.uniform(0.6, 1, rows)
        return calibration_error(confidence, (rng.random(rows) < confidence - by).astype(float), None)

    return draw


def coverage(draw: Draw, truth: float, times: int) -> float:
    """Returns the share of intervals that hold the true value."""
    held = 0
    for number in range(times):
        found = statistics.interval(draw(np.random.default_rng(number)), seed=number)
        assert found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
    return held / times


def true_value(draw: Draw, times: int = 4000) -> float:
    """Returns the mean of a figure over many drawings, of totals that are added up."""
    totals = sum(draw(np.random.default_rng(10**6 + number)).features.sum(axis=0) for number in range(times))
    return float(draw(np.random.default_rng(0)).value(np.asarray(totals)))


def alarms(draw: Two, times: int) -> float:
    """Returns how often a difference is seen."""
    seen = 0
    for number in range(times):
        one, other = draw(np.random.default_rng(number))
        seen += statistics.compare(one, other, seed=number).clear
    return seen / times


def two_shares(rows: int, right: tuple[float, float], agree: float = 0.5) -> Two:
    """Returns the drawing of two models that are right so often, alike on a share of the rows."""

    def draw(rng: np.random.Generator) -> tuple[Sample, Sample]:
        common = rng.random(rows)
        own = [np.where(rng.random(rows) < agree, common, rng.random(rows)) for _ in right]
        one, other = ((draws < each).astype(float) for draws, each in zip(own, right, strict=True))
        return mean_of(one), mean_of(other)

    return draw


def two_losses(texts: int, windows: int) -> Two:
    """Returns the drawing of two models with losses of one distribution, text by text."""
    draw_one = loss_per_token(texts, windows)

    def draw(rng: np.random.Generator) -> tuple[Sample, Sample]:
        first = draw_one(rng)
        tokens = first.features[:, 1:]
        noise = np.repeat(rng.gamma(16, 1 / 16, (2, texts)), windows, axis=1)
        one, other = (
            Sample(
                np.concatenate([first.features[:, :1] * each[:, None], tokens], axis=1), ratio, first.clusters
            )
            for each in noise
        )
        return one, other

    return draw


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=1000)
    times = parser.parse_args().times
    print(f"{times} simulated evaluations each\n\n{'what':45} coverage of 95 %")
    cases: dict[str, tuple[Draw, float | None]] = {
        "share, 200 rows, 60 % right": (share(200, 0.6), 0.6),
        "share, 100 rows, 95 % right": (share(100, 0.95), 0.95),
        "share, 40 questions of 5 answers alike": (clustered_share(40, 5, 0.6, 0.3), 0.6),
        "loss per token, 30 texts of 6 windows": (loss_per_token(30, 6), 3.0),
        "loss per token, 7 texts of 20 windows": (loss_per_token(7, 20), 3.0),
        "macro F1, 200 rows of 3 labels": (macro_f1(200), None),
        "calibration error 0.1, 400 rows": (overconfident(400, 0.1), 0.1),
        "calibration error 0, 400 rows": (overconfident(400, 0.0), 0.0),
    }
    for name, (draw, truth) in cases.items():
        value = true_value(draw) if truth is None else truth
        print(f"{name:45} {coverage(draw, value, times):.3f}", flush=True)
    print(f"\n{'two models that are alike':45} false alarms at 5 %")
    alike: dict[str, Two] = {
        "McNemar, 200 rows, 60 % right": two_shares(200, (0.6, 0.6)),
        "McNemar, 2,000 rows, 60 % right": two_shares(2000, (0.6, 0.6)),
        "permutation, 30 texts of 6 windows": two_losses(30, 6),
    }
    for name, two in alike.items():
        print(f"{name:45} {alarms(two, times):.3f}", flush=True)
    pair = two_shares(200, (0.62, 0.55))
    needed = np.median(
        [
            found.needed
            for number in range(times)
            if (found := statistics.compare(*pair(np.random.default_rng(number)))).needed
        ]
    )
    one, other = two_shares(100_000, (0.62, 0.55))(np.random.default_rng(1))
    exact = statistics.compare(one, other).needed or 0
    power = alarms(two_shares(exact, (0.62, 0.55)), times)
    print("\n62 % against 55 % right")
    print(f"said to be needed, of 200 rows (median)       {needed:,.0f}; from 100,000 rows {exact:,}")
    print(f"seen at {exact:,} rows                          {power:.3f}")


if __name__ == "__main__":
    main()
