"""Renyi DP of the Poisson-sampled Gaussian, at orders of our own choice, none of which is ever dropped.

Sources: Mironov, Talwar & Zhang 2019 (arXiv 1908.10530), section 3.3, for the moments, which also proves that
removing a unit is the worse of the two directions; Canonne, Kamath & Steinke 2020 (arXiv 2004.00010),
proposition 12, for the conversion to (epsilon, delta).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from privfm.dp.events import SampledGaussian

__all__ = [
    "ORDERS",
    "composed_rdp",
    "delta_from_rdp",
    "epsilon_from_rdp",
    "rdp_delta",
    "rdp_epsilon",
    "rdp_of_step",
]

ORDERS: tuple[float, ...] = (
    *(1.0 + k / 100 for k in range(2, 10)),
    *(1.0 + k / 20 for k in range(2, 80)),
    *(float(k) for k in range(5, 64)),
    *(float(k) for k in range(64, 257, 8)),
    *(2.0**k for k in range(9, 14)),
)
"""Orders that the RDP accountant minimises over; dense where one step's worth of patients needs them."""

NEXT_TO_NONE = 0.05
"""Noise multipliers below count as if every unit took part: chance hides nothing more, and integrals get long."""

_TAIL = 12.0  # standard deviations beyond which a fractional moment's integrand is below double precision
_EXPONENT_LIMIT = 600.0  # exp() of more would overflow; a moment that large has digits to spare


@lru_cache(maxsize=65536)
def rdp_of_step(sample_rate: float, noise_multiplier: float, order: float) -> float:
    """Renyi divergence of one step at `order` > 1, more where noise is `NEXT_TO_NONE`; infinite only if it overflows.

    Integer orders are a finite binomial sum. Other orders are a trapezoid rule on an integrand that is analytic in a
    strip and falls off like a Gaussian, so that the rule is exact to rounding.

    >>> rdp_of_step(1.0, 2.0, 8.0)   # alpha / (2 sigma^2)
    1.0
    """
    if not order > 1.0:
        raise ValueError(f"order={order}: must be > 1")
    if sample_rate == 1.0 or noise_multiplier < NEXT_TO_NONE:
        return order / (2.0 * noise_multiplier**2)
    log_moment = _log_moment_integer if order.is_integer() else _log_moment_fractional
    return max(0.0, log_moment(sample_rate, noise_multiplier, order)) / (order - 1.0)


def _log_moment_integer(q: float, sigma: float, alpha: float) -> float:
    from scipy.special import gammaln, logsumexp

    k = np.arange(int(alpha) + 1, dtype=np.float64)
    log_binomial = gammaln(alpha + 1) - gammaln(k + 1) - gammaln(alpha - k + 1)
    terms = log_binomial + k * math.log(q) + (alpha - k) * math.log1p(-q)
    # The k = 0 and k = 1 terms carry no noise factor; subtracting the whole binomial sum (which is 1) keeps digits
    # where the moment exceeds 1 by less than rounding.
    exponent = (k * k - k) / (2.0 * sigma**2)
    if exponent[-1] < 1e-2:
        return math.log1p(float(np.sum(np.exp(terms) * np.expm1(exponent))))
    return float(logsumexp(terms + exponent))


def _log_moment_fractional(q: float, sigma: float, alpha: float) -> float:
    """log E[(1 - q + q e^{(2x-1)/(2 sigma^2)})^alpha] over x ~ N(0, sigma^2)."""
    from scipy.special import logsumexp

    step = min(sigma / 8.0, sigma**2 / 2.0)
    x = np.arange(-_TAIL * sigma, alpha + _TAIL * sigma, step)
    log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2.0 * x - 1.0) / (2.0 * sigma**2))
    log_density = -(x**2) / (2.0 * sigma**2) - math.log(sigma * math.sqrt(2.0 * math.pi))
    if alpha * float(log_ratio[-1]) < _EXPONENT_LIMIT:
        # E[ratio] = 1 exactly, so the first-order term is taken out before it swallows the digits that count.
        tilt = np.expm1(alpha * log_ratio) - alpha * np.expm1(log_ratio)
        return math.log1p(float(np.sum(np.exp(log_density) * tilt)) * step)
    return float(logsumexp(alpha * log_ratio + log_density)) + math.log(step)


def composed_rdp(events: Sequence[SampledGaussian], orders: Sequence[float]) -> NDArray[np.float64]:
    """Renyi divergence of all `events` together, one value per order.

    >>> composed_rdp([SampledGaussian(1.0, 2.0, 3)], [8.0]).tolist()
    [3.0]
    """
    totals = [
        math.fsum(e.steps * rdp_of_step(e.sample_rate, e.noise_multiplier, order) for e in events if e.steps)
        for order in orders
    ]
    return np.array(totals, dtype=np.float64)


def epsilon_from_rdp(order: float, rdp: float, delta: float) -> float:
    """Epsilon at `delta` of a mechanism with Renyi divergence at most `rdp` at `order`.

    >>> round(epsilon_from_rdp(8.0, 1.0, 1e-5), 4)
    2.2141
    """
    if rdp == 0.0:
        return 0.0
    return max(0.0, rdp + math.log1p(-1.0 / order) - (math.log(delta) + math.log(order)) / (order - 1.0))


def delta_from_rdp(order: float, rdp: float, epsilon: float) -> float:
    """Delta at `epsilon` of a mechanism with Renyi divergence at most `rdp` at `order`.

    >>> round(delta_from_rdp(8.0, 1.0, 2.2141) * 1e5, 1)
    1.0
    """
    if rdp == 0.0:
        return 0.0
    log_delta = (order - 1.0) * (rdp - epsilon + math.log1p(-1.0 / order)) - math.log(order)
    return math.exp(min(0.0, log_delta))


def rdp_epsilon(events: Sequence[SampledGaussian], delta: float) -> float:
    """Epsilon of the composed `events` at `delta`: the best over `ORDERS`.

    >>> round(rdp_epsilon([SampledGaussian(0.04, 1.5, 2250)], 1e-5), 2)
    7.33
    """
    divergences = composed_rdp(events, ORDERS).tolist()
    return min(epsilon_from_rdp(order, rdp, delta) for order, rdp in zip(ORDERS, divergences, strict=True))


def rdp_delta(events: Sequence[SampledGaussian], epsilon: float) -> float:
    """Delta of the composed `events` at `epsilon`: the best over `ORDERS`."""
    divergences = composed_rdp(events, ORDERS).tolist()
    return min(delta_from_rdp(order, rdp, epsilon) for order, rdp in zip(ORDERS, divergences, strict=True))
