"""Mechanism events: what a hospital's ledger records and every accountant reads.

An event says what was done to the data and nothing about what came out. All of them here are Poisson-sampled
Gaussian sums: each privacy unit (a patient with all their images) takes part in a step with probability
`sample_rate`, its clipped contribution has L2 norm at most `clip_norm`, and Gaussian noise of standard deviation
`noise_multiplier * clip_norm` is added to the sum. Adjacency is add-or-remove one unit. The clip norm itself does
not appear because the privacy loss does not depend on it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["SampledGaussian", "compose", "events_from_json", "events_to_json", "total_steps"]

ADJACENCY = "add-or-remove-one-unit"

_MECHANISM = "poisson-sampled-gaussian"
_KEYS = frozenset({"mechanism", "sample_rate", "noise_multiplier", "steps"})


@dataclass(frozen=True, order=True)
class SampledGaussian:
    """`steps` noisy sums over Poisson samples.

    Args:
        sample_rate: probability, per step, that a unit takes part; 0 < sample_rate <= 1 (1 is the plain Gaussian).
        noise_multiplier: noise standard deviation over clip norm; finite and > 0.
        steps: how often; >= 0.

    Raises:
        ValueError: a value out of its bounds, as `name=value: bound`.

    >>> SampledGaussian(0.1, 2.0, 100)
    SampledGaussian(sample_rate=0.1, noise_multiplier=2.0, steps=100)
    >>> SampledGaussian(1.5, 2.0, 100)
    Traceback (most recent call last):
    ValueError: sample_rate=1.5: must be in (0, 1]
    """

    sample_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not 0.0 < self.sample_rate <= 1.0:
            raise ValueError(f"sample_rate={self.sample_rate}: must be in (0, 1]")
        if not 0.0 < self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier={self.noise_multiplier}: must be finite and > 0")
        if self.steps < 0:
            raise ValueError(f"steps={self.steps}: must be >= 0")

    def repeated(self, times: int) -> SampledGaussian:
        """The event of doing this `times` over.

        >>> SampledGaussian(0.1, 2.0, 5).repeated(20).steps
        100
        """
        return replace(self, steps=self.steps * times)


def compose(*groups: Iterable[SampledGaussian]) -> tuple[SampledGaussian, ...]:
    """All events of all groups as one canonical list: equal mechanisms added up, empty ones dropped, sorted.

    A group may be a run, a hospital's whole ledger, or, for a patient whose images lie at several hospitals, one
    group per hospital: the privacy losses of all of them add up for that patient, so composing the groups bounds it.

    >>> a, b = SampledGaussian(0.1, 2.0, 10), SampledGaussian(0.2, 2.0, 10)
    >>> compose([a], [b, a])
    (SampledGaussian(sample_rate=0.1, noise_multiplier=2.0, steps=20),
     SampledGaussian(sample_rate=0.2, noise_multiplier=2.0, steps=10))
    """
    steps: dict[tuple[float, float], int] = defaultdict(int)
    for group in groups:
        for event in group:
            steps[event.sample_rate, event.noise_multiplier] += event.steps
    return tuple(SampledGaussian(q, sigma, n) for (q, sigma), n in sorted(steps.items()) if n)


def total_steps(events: Iterable[SampledGaussian]) -> int:
    """Number of noisy sums in `events`.

    >>> total_steps([SampledGaussian(0.1, 2.0, 10), SampledGaussian(0.2, 2.0, 5)])
    15
    """
    return sum(event.steps for event in events)


def events_to_json(events: Sequence[SampledGaussian]) -> list[dict[str, Any]]:
    """`events` as plain data, for ledgers, statements and plans.

    >>> events_to_json([SampledGaussian(0.1, 2.0, 10)])
    [{'mechanism': 'poisson-sampled-gaussian', 'sample_rate': 0.1, 'noise_multiplier': 2.0, 'steps': 10}]
    """
    return [
        {
            "mechanism": _MECHANISM,
            "sample_rate": event.sample_rate,
            "noise_multiplier": event.noise_multiplier,
            "steps": event.steps,
        }
        for event in events
    ]


def events_from_json(data: object) -> tuple[SampledGaussian, ...]:
    """The inverse of `events_to_json`; takes its data or the text of it.

    Raises:
        ValueError: an unknown mechanism, a missing or unknown key, or a value out of bounds. Nothing is guessed:
            an event that is not understood would be an event that is not charged.

    >>> events_from_json('[{"mechanism": "laplace", "scale": 1}]')
    Traceback (most recent call last):
    ValueError: events[0]: mechanism='laplace' is unknown; known: poisson-sampled-gaussian
    """
    if isinstance(data, (str, bytes)):
        data = json.loads(data)
    if not isinstance(data, list):
        raise ValueError(f"events={type(data).__name__}: must be a list")
    return tuple(_event_from_json(f"events[{i}]", item) for i, item in enumerate(data))


def _event_from_json(where: str, item: object) -> SampledGaussian:
    if not isinstance(item, dict):
        raise ValueError(f"{where}={item!r}: must be an object")
    if item.get("mechanism") != _MECHANISM:
        raise ValueError(f"{where}: mechanism={item.get('mechanism')!r} is unknown; known: {_MECHANISM}")
    if item.keys() != _KEYS:
        raise ValueError(f"{where}: missing or unknown keys {sorted(_KEYS ^ item.keys())}")
    if type(item["steps"]) is not int:
        raise ValueError(f"{where}: steps={item['steps']!r}: must be an integer")
    rate, noise = (_real(where, key, item[key]) for key in ("sample_rate", "noise_multiplier"))
    try:
        return SampledGaussian(rate, noise, item["steps"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _real(where: str, key: str, value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{where}: {key}={value!r}: must be a real number")
    return float(value)  # type: ignore[arg-type]
