"""The calibration error against its definition, and its interval where the truth is known."""

import numpy as np
import pytest

from llmlab import statistics
from llmlab.evaluation.calibration import calibration_error, reliability


def test_a_calibrated_model_may_have_a_calibration_error_of_nothing():
    """Noise alone makes the measured error larger than 0; its interval holds 0 nearly always."""
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        confidence = rng.uniform(0.6, 1, 300)
        right = (rng.random(300) < confidence).astype(float)
        sample = calibration_error(confidence, right, None)
        found = statistics.interval(sample, seed=seed)
        held += found.low == 0
        assert found.low <= sample.figure <= found.high
    assert 53 <= held <= 60


def test_the_calibration_error_is_its_definition():
    """Two bins: six answers that are 0.95 sure and right four times; four that are 0.55 sure and right three
    times.
    """
    confidence = np.array([0.95] * 6 + [0.55] * 4)
    right = np.array([1.0] * 4 + [0.0] * 2 + [1.0] * 3 + [0.0])
    sample = calibration_error(confidence, right, None)
    assert sample.figure == pytest.approx(0.6 * (0.95 - 4 / 6) + 0.4 * (3 / 4 - 0.55))
    table = reliability(confidence, right)
    assert [(one.low, one.count, one.accuracy) for one in table] == [(0.5, 4, 0.75), (0.9, 6, 4 / 6)]
