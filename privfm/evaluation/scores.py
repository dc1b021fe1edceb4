"""Balanced accuracy, with an interval over patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["BalancedAccuracy", "balanced_accuracy", "recall_per_class"]


@dataclass(frozen=True)
class BalancedAccuracy:
    """The mean over classes of the share of their images that were recognised, and its 95% interval."""

    value: float
    low: float
    high: float


def balanced_accuracy(
    correct: Bool[np.ndarray, " images"],
    labels: Int[np.ndarray, " images"],
    patient_of: Int[np.ndarray, " images"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> BalancedAccuracy:
    """Balanced accuracy with a percentile bootstrap interval over patients.

    Images of one patient resemble each other, so patients are drawn with replacement, not images. A class that a
    resample has no image of does not count in it.

    >>> score = balanced_accuracy(np.array([True, True, False]), np.array([0, 0, 1]), np.array([0, 0, 1]))
    >>> score.value
    0.5
    """
    classes, label = np.unique(labels, return_inverse=True)
    patients, patient = np.unique(patient_of, return_inverse=True)
    seen = np.zeros((len(patients), len(classes)))
    right = np.zeros_like(seen)
    np.add.at(seen, (patient, label), 1.0)
    np.add.at(right, (patient, label), correct.astype(np.float64))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=resamples)
    low, high = np.quantile(_mean_recall(drawn @ right, drawn @ seen), [0.025, 0.975])
    return BalancedAccuracy(float(recall_per_class(correct, labels).mean()), float(low), float(high))


def recall_per_class(
    correct: Bool[np.ndarray, " images"], labels: Int[np.ndarray, " images"]
) -> Float[np.ndarray, " classes"]:
    """For every class that occurs, the share of its images that were recognised.

    >>> recall_per_class(np.array([True, False, True]), np.array([4, 4, 9]))
    array([0.5, 1. ])
    """
    _, label = np.unique(labels, return_inverse=True)
    return np.asarray(np.bincount(label, weights=correct.astype(np.float64)) / np.bincount(label))


def _mean_recall(
    right: Float[np.ndarray, "samples classes"], seen: Float[np.ndarray, "samples classes"]
) -> Float[np.ndarray, " samples"]:
    present = seen > 0
    recall = np.divide(right, seen, out=np.zeros_like(right), where=present)
    return np.asarray(recall.sum(axis=1) / present.sum(axis=1))
