"""How well a guarantee lets anybody tell who took part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

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
        guarantees: pairs of epsilon and delta that all hold; none without a guarantee.
    """

    guarantees: tuple[tuple[float, float], ...] = ()

    @property
    def guaranteed(self) -> bool:
        """Whether there is one."""
        return bool(self.guarantees)

    @property
    def allowed(self) -> float:
        """The largest area under any test's curve for the presence of one unit; 1 without a guarantee."""
        return _area(self.guarantees) if self.guarantees else 1.0

    def curve(self) -> list[tuple[float, float]]:
        """The most that any test finds at rates of false alarms, for a drawing."""
        alarms = np.linspace(0.0, 1.0, 101)
        return [(float(x), float(1 - y)) for x, y in zip(alarms, _missed(self.guarantees, alarms), strict=True)]

    @classmethod
    def of(cls, plan: Plan) -> Claim:
        """That of a complete plan: the loosest of its hospitals'."""
        if not plan.privacy.dp:
            return cls()
        events = {mechanism_of(plan, hospital).event(plan.planned_steps) for hospital in plan.hospitals}
        return max((cls(_curve_of([event])) for event in events), key=lambda claim: claim.allowed)

    @classmethod
    def of_guarantee(cls, epsilon: float, delta: float) -> Claim:
        """That of (epsilon, delta)-DP about which nothing else is known.

        >>> round(Claim.of_guarantee(1.0, 0.0).allowed, 2)
        0.73
        """
        return cls(((epsilon, delta),))

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
    return _area(_curve_of(events))


def _curve_of(events: Sequence[SampledGaussian]) -> tuple[tuple[float, float], ...]:
    return tuple((epsilon, delta_for(events, epsilon)) for epsilon in _EPSILONS)


def _area(guarantees: Iterable[tuple[float, float]]) -> float:
    """The largest area that all of these pairs of epsilon and delta together allow."""
    return float(1 - np.sum(np.diff(_GRID) * _missed(guarantees, _GRID)[1:]))


def _missed(
    guarantees: Iterable[tuple[float, float]], alarms: Float[np.ndarray, " rates"]
) -> Float[np.ndarray, " rates"]:
    """The least share that every test misses at these rates of false alarms.

    Source: Kairouz, Oh & Viswanath 2015, theorem 2.1; Dong, Roth & Su 2022, proposition 2.4.
    """
    missed = np.zeros_like(alarms)
    for epsilon, delta in guarantees:
        left = 1 - delta
        missed = np.maximum(missed, np.maximum(left - np.exp(epsilon) * alarms, np.exp(-epsilon) * (left - alarms)))
    return missed
