"""How well scores tell members from others, with intervals over people."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from privfm_attacks.pooling import auc

__all__ = ["CONFIDENCE", "Progress", "ToldApart", "roc", "roc_band", "tell_apart", "tell_kinds_apart"]

CONFIDENCE = 0.99
CHANCE = 0.01
"""Significance at which somebody counts as told apart."""

RESAMPLES = 2_000
FEWEST_ALARMS = 10
"""False alarms behind the lowest rate that is told: with fewer, a rate is anecdote."""

FOLDS = 10
RIDGE = 40.0
"""Penalty on weights of standardised features, against squared errors: as strong as a logistic regression's C = 0.1."""

Progress = Callable[[str, int, int], None]
"""Told a stage, and how much of it is done."""


@dataclass(frozen=True)
class ToldApart:
    """What a score says of people inside and outside.

    Args:
        auc: the chance that one inside scores higher than one outside.
        low, high: its interval at `CONFIDENCE`, by bootstrap over people.
        p: how often labels dealt out anew do as well.
        found: share of those inside that are found at `alarms`.
        alarms: the lowest rate of false alarms that is told.
    """

    auc: float
    low: float
    high: float
    p: float
    found: float
    alarms: float

    @property
    def beyond_chance(self) -> bool:
        """Whether those inside are told from others at all."""
        return self.p < CHANCE and self.low > 0.5

    def __str__(self) -> str:
        return f"area {self.auc:.3f} (99%: {self.low:.3f} to {self.high:.3f}; p = {self.p:.2g})"


def tell_apart(
    inside: Float[np.ndarray, " inside"], outside: Float[np.ndarray, " outside"], rng: np.random.Generator
) -> ToldApart:
    """Return how well scores tell who is inside, higher scores meaning inside.

    Args:
        rng: of resamples and permutations.
    """
    scores = np.concatenate([inside, outside])
    labels = np.arange(len(scores)) < len(inside)
    found = auc(scores, labels)
    wins = (inside[:, None] > outside[None, :]) + 0.5 * (inside[:, None] == outside[None, :])
    resampled = [_resampled(wins, rng) for _ in range(RESAMPLES)]
    as_good = [auc(scores, each) >= found - 1e-12 for each in _dealt(labels, rng)]
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    alarms = min(FEWEST_ALARMS, len(outside)) / len(outside)
    threshold = np.sort(outside)[-min(FEWEST_ALARMS, len(outside))]
    return ToldApart(
        auc=found,
        low=float(low),
        high=float(high),
        p=sum(as_good) / len(as_good),
        found=float((inside > threshold).mean()),
        alarms=alarms,
    )


def _dealt(labels: Bool[np.ndarray, " people"], rng: np.random.Generator) -> list[Bool[np.ndarray, " people"]]:
    """Labels as they are and dealt out anew: in every way where these are few, so that p is as small as can be."""
    everybody, inside = len(labels), int(labels.sum())
    if math.comb(everybody, inside) <= RESAMPLES:
        return [np.isin(np.arange(everybody), each) for each in combinations(range(everybody), inside)]
    return [labels, *(rng.permutation(labels) for _ in range(RESAMPLES // 4))]


def tell_kinds_apart(
    inside: Float[np.ndarray, "inside d"], outside: Float[np.ndarray, "outside d"], rng: np.random.Generator
) -> ToldApart:
    """Return how well the best linear weights of features tell the two sides apart, each person by others' weights.

    Scores by weights that are fitted to the labels depend on each other: of one kind of people their area varies 1.4
    times as much as that of independent scores. So labels are dealt out before the weights are fitted, not after, and
    the interval is widened by as much as areas of labels that mean nothing vary more than independent ones.

    Source: Golland et al. 2005, "Permutation tests for classification".

    Args:
        rng: of folds, resamples and permutations.
    """
    features = np.concatenate([inside, outside])
    labels = np.arange(len(features)) < len(inside)
    dealt = np.stack([labels, *(rng.permutation(labels) for _ in range(RESAMPLES // 2))], axis=1).astype(float)
    scores = _scores_of_labels(features, rng.permutation(len(features)) % FOLDS) @ dealt
    found, *chance = _areas(scores, dealt)
    told = tell_apart(scores[labels, 0], scores[~labels, 0], rng)
    independent = np.sqrt((len(labels) + 1) / (12 * len(inside) * len(outside)))
    wider = max(1.0, float(np.std(chance)) / independent)
    return replace(
        told,
        low=max(0.0, told.auc - wider * (told.auc - told.low)),
        high=min(1.0, told.auc + wider * (told.high - told.auc)),
        p=(1 + sum(each >= found - 1e-12 for each in chance)) / (1 + len(chance)),
    )


def _scores_of_labels(
    features: Float[np.ndarray, "people d"], folds: Int[np.ndarray, " people"]
) -> Float[np.ndarray, "people people"]:
    """The matrix that makes scores of labels: each person's by a ridge regression on the other folds, less its mean."""
    scores = np.zeros((len(features), len(features)))
    for held in (folds == fold for fold in np.unique(folds)):
        mean, scale = features[~held].mean(axis=0), features[~held].std(axis=0) + 1e-12
        fitted, scored = ((features[rows] - mean) / scale for rows in (~held, held))
        solved = np.linalg.solve(fitted.T @ fitted + RIDGE * np.eye(features.shape[1]), fitted.T)
        scores[np.ix_(held, ~held)] = scored @ solved
    return scores


def _areas(scores: Float[np.ndarray, "people times"], labels: Float[np.ndarray, "people times"]) -> list[float]:
    """Each column's area, by ranks; ties count half."""
    having = labels.sum(axis=0)
    above = (stats.rankdata(scores, axis=0) * labels).sum(axis=0) - having * (having + 1) / 2
    return list(above / (having * (len(labels) - having)))


def _resampled(wins: Float[np.ndarray, "inside outside"], rng: np.random.Generator) -> float:
    """The area over people drawn anew from both sides, each as often as they fall."""
    rows, columns = (np.bincount(rng.integers(n, size=n), minlength=n) / n for n in wins.shape)
    return float(rows @ wins @ columns)


def roc(
    inside: Float[np.ndarray, " inside"], outside: Float[np.ndarray, " outside"], points: int = 100
) -> list[tuple[float, float]]:
    """Return rates of false alarms with the shares found at them, for a drawing."""
    thresholds = np.quantile(np.concatenate([inside, outside]), np.linspace(1, 0, points))
    return [(float((outside >= each).mean()), float((inside >= each).mean())) for each in thresholds]


def roc_band(
    inside: Float[np.ndarray, " inside"], outside: Float[np.ndarray, " outside"], rng: np.random.Generator
) -> tuple[tuple[float, float, float], ...]:
    """Return, at rates of false alarms, the interval of the share found, at `CONFIDENCE` each, by bootstrap."""
    alarms, found = np.linspace(0, 1, 41), []
    for _ in range(RESAMPLES // 4):
        one, two = (rng.choice(side, size=len(side)) for side in (inside, outside))
        found.append([(one > threshold).mean() for threshold in np.quantile(two, 1 - alarms)])
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return tuple((float(x), float(y), float(z)) for x, y, z in zip(alarms, low, high, strict=True))
