"""The lifetime cap: a privacy filter that says, before each release, whether it still fits.

A filter holds also when every release may depend on all earlier ones, which an accountant of fixed parameters does not
promise. The one used here is Renyi DP at a single order that is fixed before the first release: as long as the
divergences at that order add up to at most `budget`, everything together is (epsilon, delta)-DP (Feldman & Zrnic 2020,
arXiv 2008.11193, theorem 4.3). Taking the best order afterwards, or filtering on privacy loss distributions, is not
proved.

Sums are taken over event *counts*, never carried along, so planner and ledger always get the same number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from privfm.dp.accounting import check_delta, check_epsilon
from privfm.dp.events import SampledGaussian, compose
from privfm.dp.renyi import composed_rdp

__all__ = ["RdpFilter"]

_MOST_ROUNDS = 10**12


@dataclass(frozen=True)
class RdpFilter:
    """(epsilon, delta) for a lifetime, kept as Renyi DP at one `order`.

    Raises:
        ValueError: a value out of its bounds, or an order at which nothing at all would fit.

    >>> cap = RdpFilter.for_cap(8.0, 1e-5)
    >>> event = SampledGaussian(0.1, 2.0, 10)
    >>> n = cap.steps_that_fit(event)
    >>> one = SampledGaussian(0.1, 2.0, 1)
    >>> cap.admits([one.repeated(n)]), cap.admits([one.repeated(n + 1)])
    (True, False)
    """

    epsilon: float
    delta: float
    order: float

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_delta(self.delta)
        if not 1.0 < self.order < math.inf:
            raise ValueError(f"order={self.order}: must be finite and > 1")
        if self.budget <= 0.0:
            raise ValueError(f"order={self.order}: nothing fits under epsilon={self.epsilon}; use a larger order")

    @classmethod
    def for_cap(cls, epsilon: float, delta: float) -> RdpFilter:
        """The filter whose order leaves most room for Gaussian-like releases; a function of the two numbers alone."""
        check_epsilon(epsilon)
        check_delta(delta)
        log_inverse_delta = -math.log(delta)
        slope = (math.sqrt(epsilon + log_inverse_delta) - math.sqrt(log_inverse_delta)) ** 2
        start = 1.0 + math.sqrt(log_inverse_delta / slope)
        candidates = (round(1.0 + (start - 1.0) * factor / 100, 3) for factor in range(50, 151))
        return cls(epsilon, delta, max(candidates, key=lambda order: _budget(epsilon, delta, order) / order))

    @property
    def budget(self) -> float:
        """Renyi divergence at `order` that converts to exactly (epsilon, delta)."""
        return _budget(self.epsilon, self.delta, self.order)

    def spent(self, events: Iterable[SampledGaussian]) -> float:
        """Renyi divergence of `events` at `order`."""
        return float(composed_rdp(compose(events), [self.order])[0])

    def admits(self, events: Iterable[SampledGaussian]) -> bool:
        """Whether all of `events`, past and proposed, fit."""
        return self.spent(events) <= self.budget

    def remaining(self, events: Iterable[SampledGaussian]) -> float:
        """Share of the budget that `events` leave, in [0, 1]."""
        return max(0.0, 1.0 - self.spent(events) / self.budget)

    def steps_that_fit(self, event: SampledGaussian, spent: Iterable[SampledGaussian] = ()) -> int:
        """How many steps of `event`'s mechanism fit after `spent`: that many are admitted, one more is not."""
        return self.rounds_that_fit([SampledGaussian(event.sample_rate, event.noise_multiplier, 1)], spent)

    def rounds_that_fit(self, per_round: Sequence[SampledGaussian], spent: Iterable[SampledGaussian] = ()) -> int:
        """How many rounds, each releasing `per_round`, fit after `spent`."""
        before = compose(spent)

        def fits(rounds: int) -> bool:
            return self.admits([*before, *(event.repeated(rounds) for event in per_round)])

        if not compose(per_round):
            raise ValueError("per_round=(): a round that releases nothing fits without end")
        low, high = 0, 1
        if not fits(0):
            return 0
        while fits(high) and high < _MOST_ROUNDS:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def to_json(self) -> dict[str, float]:
        """The three numbers that fix the filter."""
        return {"epsilon": self.epsilon, "delta": self.delta, "order": self.order}

    @classmethod
    def from_json(cls, data: object) -> RdpFilter:
        """The inverse of `to_json`; ValueError for anything else."""
        if not isinstance(data, dict) or data.keys() != {"epsilon", "delta", "order"}:
            raise ValueError(f"cap={data!r}: must have exactly epsilon, delta and order")
        return cls(float(data["epsilon"]), float(data["delta"]), float(data["order"]))


def _budget(epsilon: float, delta: float, order: float) -> float:
    """The conversion of `privfm.dp.renyi.epsilon_from_rdp`, solved for the divergence."""
    return epsilon - math.log1p(-1.0 / order) + (math.log(delta) + math.log(order)) / (order - 1.0)
