"""Privacy random variables (Gopi et al. 2021) through Opacus: a second opinion on the PLD, from other code.

Opacus imports torch, so this loads it only when asked. The value returned is the upper end of the method's interval.
"""

from __future__ import annotations

import math
from typing import Any

from privfm.dp.events import SampledGaussian
from privfm.dp.renyi import rdp_epsilon

__all__ = ["prv_delta", "prv_epsilon"]

_RELATIVE_ERROR = 1e-2
_MAX_ERROR = 0.01  # Opacus's own default
_BISECTIONS = 40


def prv_epsilon(events: tuple[SampledGaussian, ...], delta: float) -> float:
    """Upper bound on epsilon of the composed `events` at `delta`, within 1% and 0.01 of the method's estimate."""
    loose = rdp_epsilon(events, delta)
    if loose == 0.0:
        return 0.0
    error = min(_MAX_ERROR, _RELATIVE_ERROR * loose)
    composed, delta_error = _composed(events, error, delta / 1000)
    return max(0.0, float(composed.compute_epsilon(delta, delta_error, error)[2]))


def prv_delta(events: tuple[SampledGaussian, ...], epsilon: float) -> float:
    """Upper bound on delta of the composed `events` at `epsilon`: `prv_epsilon` turned round by bisection."""
    low, high = math.log(1e-12), math.log(0.5)
    if prv_epsilon(events, math.exp(high)) > epsilon:
        return 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if prv_epsilon(events, math.exp(middle)) <= epsilon else (middle, high)
        if high - low < 1e-3:
            break
    return math.exp(high)


def _composed(events: tuple[SampledGaussian, ...], error: float, delta_error: float) -> tuple[Any, float]:
    from opacus.accountants.prv import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [_as_history(event) for event in events]
    return accountant._get_dprv(eps_error=error, delta_error=delta_error), delta_error


def _as_history(event: SampledGaussian) -> tuple[float, float, int]:
    """Opacus's row; its formulas take log(1 - q), so an unsampled Gaussian is passed as one at a rate just below 1."""
    if event.sample_rate < 1.0:
        return event.noise_multiplier, event.sample_rate, event.steps
    return event.noise_multiplier / math.sqrt(event.steps), 1.0 - 2.0**-40, 1
