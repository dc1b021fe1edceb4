"""How well scores tell members from others, with intervals over people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from privfm_attacks.pooling import auc

__all__ = ["CONFIDENCE", "Progress", "ToldApart", "roc", "roc_band", "tell_apart"]

CONFIDENCE = 0.99
CHANCE = 0.01
"""Significance at which somebody counts as told apart."""

RESAMPLES = 2_000
FEWEST_ALARMS = 10
"""False alarms behind the lowest rate that is told: with fewer, a rate is anecdote."""

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
    chance = [auc(scores, rng.permutation(labels)) for _ in range(RESAMPLES // 4)]
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    alarms = min(FEWEST_ALARMS, len(outside)) / len(outside)
    threshold = np.sort(outside)[-min(FEWEST_ALARMS, len(outside))]
    return ToldApart(
        auc=found,
        low=float(low),
        high=float(high),
        p=(1 + sum(each >= found - 1e-12 for each in chance)) / (1 + len(chance)),
        found=float((inside > threshold).mean()),
        alarms=alarms,
    )


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
