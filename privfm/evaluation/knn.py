"""How often an image's nearest neighbours are of its class."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from privfm.data import ImageSet
from privfm.evaluation.features import labelled, pooled_features
from privfm.evaluation.scores import BalancedAccuracy, balanced_accuracy
from privfm.models import Backbone

__all__ = ["nearest_neighbours"]

_NEIGHBOURS = 20
_TEMPERATURE = 0.07


def nearest_neighbours(backbone: Backbone, fit: ImageSet, test: ImageSet, *, seed: int = 0) -> BalancedAccuracy:
    """Balanced accuracy of a vote among the 20 images of `fit` with the most similar features; nothing is fitted.

    Features are standardised with the statistics of `fit` and compared by cosine; a neighbour's vote weighs
    exp(cosine / 0.07).

    Source: Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination", section 3.4.

    Raises:
        DataError: a set has no labels.
    """
    fit, fit_labels = labelled(fit)
    test, test_labels = labelled(test)
    seen = pooled_features(backbone, fit)
    mean, deviation = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    unseen = (pooled_features(backbone, test) - mean) / deviation
    predicted = _vote(_unit((seen - mean) / deviation), fit_labels, _unit(unseen))
    return balanced_accuracy(predicted == test_labels, test_labels, test.patient_of, seed=seed)


def _vote(
    fit: Float[np.ndarray, "fit d"], labels: Int[np.ndarray, " fit"], test: Float[np.ndarray, "test d"]
) -> Int[np.ndarray, " test"]:
    cosines = test @ fit.T
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :_NEIGHBOURS]
    weights = np.exp((np.take_along_axis(cosines, nearest, axis=1) - 1.0) / _TEMPERATURE)
    votes = np.zeros((len(test), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(test))[:, None], labels[nearest]), weights)
    return np.asarray(votes.argmax(axis=1))


def _unit(features: Float[np.ndarray, "images d"]) -> Float[np.ndarray, "images d"]:
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12))
