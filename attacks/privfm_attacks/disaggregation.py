"""From what was read off sums to what each hospital is like, through the matrix of who was in which sum.

Source: Kerkouche et al. 2023, "Client-specific property inference against secure aggregation in federated learning"
(arXiv 2303.03908): a linear model's reading of a sum is the sum of its readings of the summands, so that readings of
several rounds are linear equations for the hospitals.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logsumexp

__all__ = ["METHODS", "expectation_maximisation", "least_squares", "ridge"]

Readings = Float[np.ndarray, " sums"]
Weights = Float[np.ndarray, "sums hospitals"]
Scores = Float[np.ndarray, " hospitals"]

HALF = 0.5
"""What a hospital is taken to be where nothing tells: as likely with the property as without."""

ENUMERATED = 10
"""Hospitals up to which every assignment is looked at."""

STEPS = 30


def least_squares(weights: Weights, readings: Readings) -> Scores:
    """Return, for each hospital, the reading that fits best, and least far from one half where several do.

    Args:
        weights: with which a hospital's reading is in each sum; 0 where it is not.
        readings: of each sum, 1 for a hospital with the property and 0 for one without, each times its weight.

    >>> least_squares(np.array([[1.0, 1.0], [1.0, 0.0]]), np.array([1.0, 1.0])).round(6).tolist() == [1, 0]
    True
    """
    fitted: Scores = HALF + np.linalg.pinv(weights, rcond=1e-9) @ (readings - weights.sum(axis=1) * HALF)
    return fitted


def ridge(weights: Weights, readings: Readings) -> Scores:
    """Return the readings that are likeliest if hospitals scatter about one half as coins do, and sums by as much as
    least squares leaves over."""
    excess = readings - weights.sum(axis=1) * HALF
    penalty = _left_over(weights, readings) / HALF**2
    square = weights.T @ weights + penalty * np.eye(weights.shape[1])
    return np.asarray(HALF + np.linalg.solve(square, weights.T @ excess))


def _left_over(weights: Weights, readings: Readings) -> float:
    """The variance of what least squares does not explain, at least a thousandth."""
    rest = readings - weights @ least_squares(weights, readings)
    spare = len(readings) - np.linalg.matrix_rank(weights)
    return max(float(rest @ rest) / max(int(spare), 1), 1e-3)


def expectation_maximisation(weights: Weights, readings: Readings) -> Scores:
    """Return the log odds that each hospital has the property, which is 0 or 1, under normal noise of unknown variance.

    Every assignment is looked at where hospitals are few. Else each hospital is taken to be independent of the others
    given the readings.
    """
    variance = _left_over(weights, readings)
    posterior = _exact if weights.shape[1] <= ENUMERATED else _mean_field
    for _ in range(STEPS):
        odds, variance = posterior(weights, readings, variance)
    return odds


def _exact(weights: Weights, readings: Readings, variance: float) -> tuple[Scores, float]:
    states = np.array(list(itertools.product((0, 1), repeat=weights.shape[1])))
    squares = ((readings[:, None] - weights @ states.T) ** 2).sum(axis=0)
    log = -squares / (2 * variance)
    odds = np.array([logsumexp(log[column == 1]) - logsumexp(log[column == 0]) for column in states.T])
    expected = float(np.exp(log - logsumexp(log)) @ squares)
    return odds, max(expected / len(readings), 1e-4)


def _mean_field(weights: Weights, readings: Readings, variance: float) -> tuple[Scores, float]:
    mean, own = np.full(weights.shape[1], HALF), (weights**2).sum(axis=0)
    odds = np.zeros_like(mean)
    for _ in range(STEPS):
        rest = readings - weights @ mean
        odds = (weights.T @ rest + own * (mean - HALF)) / variance
        mean = 0.8 * mean + 0.2 * expit(odds)  # all at once, and slowly, so that equal hospitals stay equal
    expected = float(((readings - weights @ mean) ** 2).sum() + (own * mean * (1 - mean)).sum())
    return odds, max(expected / len(readings), 1e-4)


METHODS: dict[str, Callable[[Weights, Readings], Scores]] = {
    "least_squares": least_squares,
    "ridge": ridge,
    "em": expectation_maximisation,
}
