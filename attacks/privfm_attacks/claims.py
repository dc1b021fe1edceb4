"""How well a guarantee lets anybody tell who took part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from privfm.dp.accounting import delta_for
from privfm.dp.events import SampledGaussian
from privfm.federation.planning import mechanism_of
from privfm.plan import Plan
from privfm_attacks.telling_apart import ToldApart
from privfm_attacks.verdicts import Finding

__all__ = ["Claim", "allowed_auc"]

_EPSILONS = tuple(float(e) for e in (*np.linspace(0.0, 2.0, 9), *np.linspace(2.5, 16.0, 28)))
_GRID = np.concatenate([[0.0], np.logspace(-7, 0, 400)])


@dataclass(frozen=True)
class Claim:
    """A guarantee, or none.

    Args:
        allowed: the largest area under any test's curve for the presence of one unit; 1 without a guarantee.
        guaranteed: whether there is one.
    """

    allowed: float = 1.0
    guaranteed: bool = False

    @classmethod
    def of(cls, plan: Plan) -> Claim:
        """That of a complete plan: the loosest of its hospitals'."""
        if not plan.privacy.dp:
            return cls()
        events = {mechanism_of(plan, hospital).event(plan.planned_steps) for hospital in plan.hospitals}
        return cls(max(allowed_auc([event]) for event in events), True)

    @classmethod
    def of_guarantee(cls, epsilon: float, delta: float) -> Claim:
        """That of (epsilon, delta)-DP about which nothing else is known.

        >>> round(Claim.of_guarantee(1.0, 0.0).allowed, 2)
        0.73
        """
        return cls(_area([(epsilon, delta)]), True)

    def judge(self, check: str, told: ToldApart) -> Finding:
        """Return whether people are told apart no better than is allowed; without a guarantee, not at all."""
        passed = told.low <= self.allowed and (self.guaranteed or not told.beyond_chance)
        return Finding(check, passed, f"{told}; allowed {self.allowed:.3f}")

    def __str__(self) -> str:
        return f"the guarantee allows {self.allowed:.3f}" if self.guaranteed else "no guarantee is claimed"


def allowed_auc(events: Sequence[SampledGaussian]) -> float:
    """Return the largest area under any test's curve for the presence of one unit: one minus that of the trade-off.

    Never too small: between points of a grid the lower of two values counts.

    >>> allowed_auc([SampledGaussian(1.0, 100.0, 1)]) < 0.51 < 0.9 < allowed_auc([SampledGaussian(1.0, 0.4, 1)])
    True
    """
    return _area((epsilon, delta_for(events, epsilon)) for epsilon in _EPSILONS)


def _area(guarantees: Iterable[tuple[float, float]]) -> float:
    """The largest area that all of these pairs of epsilon and delta together allow.

    Source: Kairouz, Oh & Viswanath 2015, theorem 2.1; Dong, Roth & Su 2022, proposition 2.4.
    """
    missed = np.zeros_like(_GRID)
    for epsilon, delta in guarantees:
        left = 1 - delta
        missed = np.maximum(missed, np.maximum(left - np.exp(epsilon) * _GRID, np.exp(-epsilon) * (left - _GRID)))
    return float(1 - np.sum(np.diff(_GRID) * missed[1:]))
