from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from privfm.evaluation import balanced_accuracy


def test_it_is_the_balanced_accuracy() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(4, size=200), rng.integers(4, size=200)
    score = balanced_accuracy(predicted == labels, labels, np.arange(200) // 5)
    assert score.value == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert score.low < score.value < score.high


def test_the_interval_is_over_patients_not_images() -> None:
    labels = np.zeros(400, dtype=np.int64)
    patient_of = np.arange(400) // 40
    by_patient = (patient_of % 2).astype(bool)
    rng = np.random.default_rng(0)
    by_image = rng.permutation(by_patient)
    wide, narrow = (balanced_accuracy(correct, labels, patient_of) for correct in (by_patient, by_image))
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_the_interval_covers() -> None:
    """Over repeated draws of patients the 95% interval holds the truth about 95% of the time."""
    rng = np.random.default_rng(0)
    hits = 0
    for repeat in range(200):
        skill = rng.uniform(0.2, 1.0, size=60)
        correct = rng.random((60, 5)) < skill[:, None]
        score = balanced_accuracy(
            correct.ravel(), np.zeros(300, dtype=np.int64), np.arange(300) // 5, resamples=200, seed=repeat
        )
        hits += score.low <= 0.6 <= score.high
    assert 175 <= hits <= 198


def test_seeded() -> None:
    labels, patients = np.arange(60) % 3, np.arange(60) // 2
    correct = np.arange(60) % 4 > 0
    assert balanced_accuracy(correct, labels, patients, seed=1) == balanced_accuracy(correct, labels, patients, seed=1)
