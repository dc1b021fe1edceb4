"""Lower bounds on epsilon from what an attack told apart."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

__all__ = ["clopper_pearson_bound", "epsilon_of_mu", "gaussian_pair_bound", "mu_of_errors", "one_run_bound"]

FEWEST = 10
"""Scores on each side without which nothing is said."""

MOST = 200.0
"""No bound above this is told."""


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Return the epsilon at `delta` that telling N(0, 1) from N(mu, 1) implies; 0 for mu <= 0.

    Source: Dong, Roth & Su 2022, corollary 2.13.

    >>> round(epsilon_of_mu(1.0, 1e-5), 2)
    4.38
    """
    if mu <= 0:
        return 0.0

    def excess(epsilon: float) -> float:
        log_tail = stats.norm.logcdf(-epsilon / mu - mu / 2)
        return float(stats.norm.cdf(-epsilon / mu + mu / 2) - math.exp(min(epsilon + log_tail, 0.0)) - delta)

    if excess(0.0) <= 0:
        return 0.0
    return MOST if excess(MOST) > 0 else float(optimize.brentq(excess, 0.0, MOST))


def gaussian_pair_bound(
    inside: Float[np.ndarray, " inside"], outside: Float[np.ndarray, " outside"], delta: float, alpha: float
) -> float:
    """Return a lower bound on epsilon with confidence 1 - alpha, if scores are normal with one variance.

    The standardised difference of means has a noncentral t distribution. Scores of canaries that take part at random
    vary more than those that do not, which makes the pooled deviation larger and the bound lower.
    """
    n, m = len(inside), len(outside)
    if min(n, m) < FEWEST:
        return 0.0
    degrees, size = n + m - 2, math.sqrt(n * m / (n + m))
    pooled = math.sqrt(((n - 1) * inside.var(ddof=1) + (m - 1) * outside.var(ddof=1)) / degrees)
    t = size * float(inside.mean() - outside.mean()) / max(pooled, 1e-300)
    t = min(t, 1e3)  # beyond, the noncentral t is no longer computed well, and every bound is enormous

    def below(shift: float) -> float:
        return float(stats.nct.sf(t, degrees, shift)) - alpha

    if below(0.0) >= 0:
        return 0.0
    return epsilon_of_mu(float(optimize.brentq(below, 0.0, t)) / size, delta)


def mu_of_errors(false_positive: float, false_negative: float) -> float:
    """Return the mu whose Gaussian trade-off has these error rates: what a test that good implies."""
    return float(stats.norm.isf(false_positive) - stats.norm.ppf(false_negative))


def clopper_pearson_bound(
    inside: Float[np.ndarray, " inside"],
    outside: Float[np.ndarray, " outside"],
    threshold: float,
    delta: float,
    alpha: float,
) -> float:
    """Return a lower bound on epsilon from error counts at a threshold fixed beforehand, under Gaussian DP.

    Source: Nasr et al. 2023, section 4, with Clopper-Pearson intervals of alpha / 2 for each error rate.
    """
    missed, alarms = int((inside <= threshold).sum()), int((outside > threshold).sum())
    upper = [_upper(count, total, alpha / 2) for count, total in ((alarms, len(outside)), (missed, len(inside)))]
    return 0.0 if max(upper) >= 1 else epsilon_of_mu(mu_of_errors(*upper), delta)


def _upper(count: int, total: int, alpha: float) -> float:
    return 1.0 if count == total else float(stats.beta.isf(alpha, count + 1, total - count))


def one_run_bound(
    scores: Float[np.ndarray, " canaries"], included: np.ndarray, guesses: int, delta: float, alpha: float
) -> float:
    """Return a lower bound on epsilon from guessing who was in, for the most and least likely half of `guesses` each.

    It holds for any algorithm and any scores.  Source: Steinke, Nasr & Jagielski 2023, theorem 5.2.
    """
    order, half = np.argsort(scores), guesses // 2
    if half < 1:
        return 0.0
    right = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())

    def p_value(epsilon: float) -> float:
        chance = 1 / (1 + math.exp(-epsilon))
        tail = float(stats.binom.sf(right - 1, 2 * half, chance))
        at = np.arange(1, right + 1)
        near = np.cumsum(stats.binom.pmf(right - at, 2 * half, chance)) / at
        return tail + 2 * len(scores) * delta * float(near.max(initial=0.0))

    if p_value(0.0) >= alpha:
        return 0.0
    if p_value(MOST) < alpha:
        return MOST
    return float(optimize.brentq(lambda epsilon: p_value(epsilon) - alpha, 0.0, MOST))
