"""Whether a model is right as often as it says how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmlab.statistics import Sample


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence: how sure the model was on average, and how often right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


BINS = 10


def calibration_error(confidence: np.ndarray, right: np.ndarray, clusters: np.ndarray | None) -> Sample:
    """Returns the sample of the expected calibration error: the mean distance of confidence and accuracy over
    ten bins of equal width, weighted by their answers (Naeini et al. 2015; Guo et al. 2017).
    """
    places = _bins(confidence)
    features = np.zeros((len(confidence), BINS + 1))
    features[np.arange(len(confidence)), places] = confidence - right
    features[:, BINS] = 1

    def value(totals: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(totals[..., :BINS]).sum(axis=-1) / np.maximum(1, totals[..., BINS]))

    return Sample(features, value, clusters, distance=True)


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
    """Returns the bins of a reliability table that hold an answer."""
    places = _bins(confidence)
    table = []
    for number in range(BINS):
        here = places == number
        if here.any():
            low, high = number / BINS, (number + 1) / BINS
            means = float(confidence[here].mean()), float(right[here].mean())
            table.append(Bin(low, high, int(here.sum()), *means))
    return table


def _bins(confidence: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip((confidence * BINS).astype(int), 0, BINS - 1))
