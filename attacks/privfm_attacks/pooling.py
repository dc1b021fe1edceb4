"""How well scores tell hospitals apart, pooled over federations: never across them, since readings differ in scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["DIGITS", "Pooled", "Scored", "auc", "pool"]

DIGITS = 9
"""To which scores are compared: what rounding tells apart is not apart."""

RESAMPLES = 2_000


@dataclass(frozen=True)
class Scored:
    """One federation's hospitals.

    Args:
        scores: higher for those taken to have the property.
        labels: who has it.
    """

    scores: Float[np.ndarray, " hospitals"]
    labels: Bool[np.ndarray, " hospitals"]


@dataclass(frozen=True)
class Pooled:
    """Mean of the federations' areas under the curve.

    Args:
        auc: the chance that, of two hospitals of one federation, the one with the property scores higher.
        low, high: 95% interval, by bootstrap over federations.
        p: how often labels permuted within each federation do as well.
    """

    auc: float
    low: float
    high: float
    p: float


def auc(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    """Return the share of pairs in which the one with the label scores higher; ties count half.

    >>> auc(np.array([1.0, 2.0, 2.0]), np.array([False, True, False]))
    0.75
    """
    return float(_pairs(scores)[np.ix_(labels, ~labels)].mean())


def _pairs(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
    """1 where the row's score is higher than the column's, one half where they are equal."""
    scale = np.abs(scores).max(initial=0.0) or 1.0
    rounded = np.round(scores / scale, DIGITS)
    return np.asarray(0.5 + 0.5 * np.sign(rounded[:, None] - rounded[None, :]))


def pool(federations: Sequence[Scored], rng: np.random.Generator) -> Pooled:
    """Return the pooled area with its interval and p-value.

    Args:
        federations: with hospitals of both kinds each.
        rng: of permutations and resamples.
    """
    each = np.array([auc(one.scores, one.labels) for one in federations])
    chance = np.mean([_permuted(one, rng) for one in federations], axis=0)
    resampled = each[rng.integers(len(each), size=(RESAMPLES, len(each)))].mean(axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    as_good = int((chance >= each.mean() - 1e-12).sum())
    return Pooled(float(each.mean()), float(low), float(high), (1 + as_good) / (1 + len(chance)))


def _permuted(one: Scored, rng: np.random.Generator) -> Float[np.ndarray, " permutations"]:
    """Areas with the labels dealt out anew."""
    pairs = _pairs(one.scores)
    dealt = rng.permuted(np.tile(one.labels, (RESAMPLES, 1)), axis=1).astype(float)
    having, lacking = dealt, 1 - dealt
    wins = np.einsum("ri,ij,rj->r", having, pairs, lacking)
    return np.asarray(wins / (having.sum(axis=1) * lacking.sum(axis=1)))
