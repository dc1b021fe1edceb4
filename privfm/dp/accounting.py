"""From events to (epsilon, delta), by any of three accountants.

* `pld`: privacy loss distributions; tight, from above; the default and the number printed for a run whose
  parameters were fixed before its first release.
* `rdp`: Renyi DP; looser, instant, and the language of the lifetime cap (`privfm.dp.filter`).
* `prv`: privacy random variables through Opacus; a second opinion in other code (imports torch).

All are for Poisson sampling and add-or-remove adjacency of one privacy unit. Nothing heavy is imported before it is
used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

from privfm.dp import pld, prv, renyi
from privfm.dp.events import SampledGaussian, compose

__all__ = [
    "ACCOUNTANTS",
    "accountant_version",
    "check_delta",
    "check_epsilon",
    "delta_for",
    "epsilon",
    "epsilon_curve",
    "epsilon_over_steps",
]


@dataclass(frozen=True)
class Accountant:
    """Two upper bounds over canonical, non-empty events, and the distribution that they come from."""

    epsilon: Callable[[tuple[SampledGaussian, ...], float], float]
    delta: Callable[[tuple[SampledGaussian, ...], float], float]
    distribution: str


ACCOUNTANTS: dict[str, Accountant] = {
    "pld": Accountant(pld.pld_epsilon, pld.pld_delta, "dp-accounting"),
    "rdp": Accountant(renyi.rdp_epsilon, renyi.rdp_delta, "privfm"),
    "prv": Accountant(prv.prv_epsilon, prv.prv_delta, "opacus"),
}


def epsilon(events: Sequence[SampledGaussian], delta: float, accountant: str = "pld") -> float:
    """Epsilon at `delta` of everything in `events` together; an upper bound.

    For a patient seen at several hospitals pass the events of all of them.

    Raises:
        ValueError: delta out of (0, 1) or too small for the accountant's arithmetic; an unknown accountant.

    >>> 6.76 < epsilon([SampledGaussian(0.04, 1.5, 2250)], 1e-5) < 6.78
    True
    >>> epsilon([], 1e-5)
    0.0
    """
    check_delta(delta)
    return _epsilon(compose(events), float(delta), _known(accountant))


def delta_for(events: Sequence[SampledGaussian], epsilon: float, accountant: str = "pld") -> float:
    """Delta at `epsilon` of everything in `events` together; an upper bound.

    >>> delta_for([SampledGaussian(0.04, 1.5, 2250)], 6.78) < 1e-5
    True
    """
    if not 0.0 <= epsilon < math.inf:
        raise ValueError(f"epsilon={epsilon}: must be finite and >= 0")
    return _delta(compose(events), float(epsilon), _known(accountant))


def epsilon_curve(
    events: Sequence[SampledGaussian], deltas: Sequence[float], accountant: str = "pld"
) -> tuple[tuple[float, float], ...]:
    """`(delta, epsilon)` pairs, one per delta.

    >>> [round(e, 2) for _, e in epsilon_curve([SampledGaussian(1.0, 5.0, 1)], [1e-6, 1e-4], "rdp")]
    [0.9, 0.67]
    """
    return tuple((delta, epsilon(events, delta, accountant)) for delta in deltas)


def epsilon_over_steps(
    event: SampledGaussian,
    steps: Sequence[int],
    delta: float,
    accountant: str = "pld",
    before: Sequence[SampledGaussian] = (),
) -> tuple[float, ...]:
    """Epsilon after each number of steps in `steps` of `event`, on top of what was spent `before`.

    >>> epsilon_over_steps(SampledGaussian(0.1, 2.0, 1), [0, 0], 1e-5)
    (0.0, 0.0)
    """
    one = SampledGaussian(event.sample_rate, event.noise_multiplier, 1)
    return tuple(epsilon([*before, one.repeated(n)], delta, accountant) for n in steps)


def accountant_version(accountant: str) -> str:
    """What to name in a statement, such as `dp-accounting 0.6.0`.

    >>> accountant_version("pld").split()[0]
    'dp-accounting'
    """
    distribution = ACCOUNTANTS[_known(accountant)].distribution
    return f"{distribution} {version(distribution)}"


def check_delta(delta: float) -> None:
    """Raises ValueError unless 0 < delta < 1."""
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta={delta}: must be in (0, 1), and well below 1 over the number of patients")


def check_epsilon(epsilon: float) -> None:
    """Raises ValueError unless `epsilon` is finite and above 0."""
    if not 0.0 < epsilon < math.inf:
        raise ValueError(f"epsilon={epsilon}: must be finite and > 0")


def _known(accountant: str) -> str:
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant={accountant!r}: must be one of {', '.join(ACCOUNTANTS)}")
    return accountant


@lru_cache(maxsize=65536)
def _epsilon(events: tuple[SampledGaussian, ...], delta: float, accountant: str) -> float:
    return float(_accountant(accountant, events).epsilon(events, delta)) if events else 0.0


@lru_cache(maxsize=65536)
def _delta(events: tuple[SampledGaussian, ...], epsilon: float, accountant: str) -> float:
    return float(_accountant(accountant, events).delta(events, epsilon)) if events else 0.0


def _accountant(name: str, events: tuple[SampledGaussian, ...]) -> Accountant:
    """The one of that name; where noise is next to none, the one whose numbers stay small enough to compute with."""
    return ACCOUNTANTS["rdp" if any(event.noise_multiplier < renyi.NEXT_TO_NONE for event in events) else name]
