"""How much a linear classifier finds in frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from privfm.data import ImageSet
from privfm.errors import DataError
from privfm.evaluation.features import labelled, pooled_features
from privfm.evaluation.scores import balanced_accuracy, recall_per_class
from privfm.models import Backbone

__all__ = ["ProbeResult", "linear_probe"]

#: Inverse strengths of the L2 penalty to choose from, on the fitting patients alone.
_INVERSE_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
_FOLDS = 3

#: Added to the variances when features are decorrelated, in units of one standardised feature's variance.
_RIDGE = 0.01

_MAX_ITERATIONS = 1000

Features = Float[np.ndarray, "images d"]
Labels = Int[np.ndarray, " images"]


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

    Features are standardised and decorrelated, since a penalty treats all directions alike and untrained networks
    have a few that drown the others; classes weigh the same. The strength of the penalty is the one that does best
    over three folds of the fitting patients, so that nothing is tuned on test patients. Classes that `fit` does not
    have count as never recognised.

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
    seen, unseen = pooled_features(backbone, fit), pooled_features(backbone, test)
    with threadpool_limits(1):  # matrices are so small that threads cost more than they bring
        penalty = _choose(seen, fit_labels, _folds(fit_labels, fit.patient_of))
        predicted = _fit_predict(seen, fit_labels, unseen, penalty)
    score = balanced_accuracy(predicted == test_labels, test_labels, test.patient_of, seed=seed)
    return ProbeResult(
        score.value, score.low, score.high, len(np.unique(test_labels)), len(fit_labels), len(test_labels)
    )


def _folds(labels: Labels, patient_of: Int[np.ndarray, " images"]) -> Int[np.ndarray, " images"]:
    """A fold for every image: whole patients, those of a class dealt out in turn."""
    patients, first, patient = np.unique(patient_of, return_index=True, return_inverse=True)
    order = np.lexsort((patients, labels[first]))
    fold_of = np.empty(len(patients), dtype=np.int64)
    fold_of[order] = np.arange(len(patients)) % _FOLDS
    return np.asarray(fold_of[patient])


def _choose(features: Features, labels: Labels, folds: Int[np.ndarray, " images"]) -> float:
    """The inverse penalty with the best balanced accuracy over the folds; the middle one where folds cannot tell."""
    held = [folds == fold for fold in range(_FOLDS)]
    usable = [rows for rows in held if rows.any() and len(np.unique(labels[~rows])) > 1]
    if not usable:
        return _INVERSE_PENALTIES[len(_INVERSE_PENALTIES) // 2]
    scores = [sum(_fold_score(features, labels, rows, penalty) for rows in usable) for penalty in _INVERSE_PENALTIES]
    return _INVERSE_PENALTIES[int(np.argmax(scores))]


def _fold_score(features: Features, labels: Labels, held: Bool[np.ndarray, " images"], penalty: float) -> float:
    predicted = _fit_predict(features[~held], labels[~held], features[held], penalty)
    return float(recall_per_class(predicted == labels[held], labels[held]).mean())


def _fit_predict(
    fit: Float[np.ndarray, "fit d"], labels: Int[np.ndarray, " fit"], test: Float[np.ndarray, "test d"], penalty: float
) -> Int[np.ndarray, " test"]:
    mean, directions = _decorrelation(fit)
    classifier = LogisticRegression(C=penalty, class_weight="balanced", max_iter=_MAX_ITERATIONS)
    classifier.fit((fit - mean) @ directions, labels)
    return np.asarray(classifier.predict((test - mean) @ directions))


def _decorrelation(features: Features) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """The mean, and the map after which standardised features are uncorrelated with variance one or less."""
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = np.where(deviation > 1e-6, deviation, 1.0)  # a constant feature says nothing and must not blow up
    standardised = ((features - mean) / scale).astype(np.float64)
    variances, directions = np.linalg.eigh(standardised.T @ standardised / len(features))
    return mean, directions / np.sqrt(np.maximum(variances, 0.0) + _RIDGE) / scale[:, None]
