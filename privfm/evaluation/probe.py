"""How much a linear classifier finds in frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression

from privfm.data import ImageSet
from privfm.errors import DataError
from privfm.evaluation.features import labelled, pooled_features
from privfm.evaluation.scores import balanced_accuracy
from privfm.models import Backbone

__all__ = ["ProbeResult", "linear_probe"]

#: Inverse strength of the probe's L2 penalty on standardised features; fixed, so that no run can choose its own.
_INVERSE_PENALTY = 0.1
_MAX_ITERATIONS = 500


@dataclass(frozen=True)
class ProbeResult:
    """What a linear probe found.

    Attributes:
        balanced_accuracy, low, high: on the test images, with the 95% interval over test patients.
        classes: classes among the test images.
        fit_images, test_images: labelled images that were used.
    """

    balanced_accuracy: float
    low: float
    high: float
    classes: int
    fit_images: int
    test_images: int


def linear_probe(backbone: Backbone, fit: ImageSet, test: ImageSet, *, seed: int = 0) -> ProbeResult:
    """Balanced accuracy on `test` of a logistic regression fitted to frozen features of `fit`.

    The two sets must not share patients. The penalty is fixed and classes weigh the same, so that there is nothing
    to tune on the test patients. Classes that `fit` does not have count as never recognised.

    Args:
        seed: of the bootstrap alone; the fit has no randomness.

    Raises:
        DataError: a set has no labels, the fitting set has one class only, or a patient is in both.
    """
    fit, fit_labels = labelled(fit)
    test, test_labels = labelled(test)
    shared = set(fit.patients) & set(test.patients)
    if shared:
        raise DataError(f"{test.name}: {len(shared)} patients are both fitted and tested on; split by patient")
    if len(np.unique(fit_labels)) < 2:
        raise DataError(f"{fit.name}: all images have one label; a probe needs two classes or more")
    predicted = _fit_predict(pooled_features(backbone, fit), fit_labels, pooled_features(backbone, test))
    score = balanced_accuracy(predicted == test_labels, test_labels, test.patient_of, seed=seed)
    return ProbeResult(
        score.value, score.low, score.high, len(np.unique(test_labels)), len(fit_labels), len(test_labels)
    )


def _fit_predict(
    fit: Float[np.ndarray, "fit d"], labels: Int[np.ndarray, " fit"], test: Float[np.ndarray, "test d"]
) -> Int[np.ndarray, " test"]:
    mean = fit.mean(axis=0)
    deviation = fit.std(axis=0)
    scale = np.where(deviation > 1e-6, deviation, 1.0)  # a constant feature says nothing and must not blow up
    classifier = LogisticRegression(C=_INVERSE_PENALTY, class_weight="balanced", max_iter=_MAX_ITERATIONS)
    classifier.fit((fit - mean) / scale, labels)
    return np.asarray(classifier.predict((test - mean) / scale))
