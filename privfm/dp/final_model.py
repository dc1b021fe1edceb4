"""A second guarantee, for readers who only ever see sums over hospitals.

Everybody who sees one hospital's update is covered by that hospital's own noise alone. Somebody who sees only the sum,
such as a user of the model, also faces everybody else's noise: with K equal hospitals, sqrt(K) times as much. This is
proved here for one case, and refused for every other.

Preconditions, which the caller answers for:
    Each hospital takes *one* noisy step a round, of plain gradient descent (no moments, nothing kept from round to
    round), and sends it clamped to a public range, rounded stochastically to a public grid, under the mask. Then the
    sum of a round's updates is, but for rounding and clamping, the clipped sums plus the sum of all Gaussian noises.

What rounding does:
    Stochastic rounding of x + N(0, t^2) gives the integer k with the probability density of x + N(0, t^2) + T at k,
    where T is triangular on [-1, 1]. Added up over hospitals, such integers have the density of (the sum of all of it)
    at k, up to aliasing terms of about exp(-pi^2 t^2) a value (Poisson summation); that density is a randomised
    function of the sum before rounding, because shifted triangular kernels add up to 1 at every point. With t >= 4
    grid steps the difference is below 1e-60: rounding is post-processing of the Gaussian sum.

What clamping does:
    Nothing, unless noise exceeds `NOISE_TAIL` standard deviations, provided that the range has room for every unit
    pulling one value the same way; the probability of the exception, times 1 + e^epsilon, is taken out of delta.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from privfm.dp.accounting import epsilon
from privfm.dp.events import SampledGaussian, compose
from privfm.dp.statement import FinalModelGuarantee

__all__ = ["NOISE_TAIL", "SummedHospital", "final_model_guarantee", "summed_events"]

NOISE_TAIL = 9.0
_LEAST_NOISE = 4.0  # grid steps
_SHARE_OF_DELTA = 0.01  # that clamping may take

_ASSUMPTIONS = (
    "the reader sees models and sums only: no hospital's own update, and no hospital's noise",
    "every hospital in a sum added its noise; one that left it out, or tells it, takes its share of protection away",
    "no hospital has more units than the bound that its clamp was planned for",
    "which hospitals dropped out of a round did not depend on their images",
)


@dataclass(frozen=True)
class SummedHospital:
    """A hospital's public numbers, in steps of the rounding grid.

    Args:
        sample_rate: chance of each unit to be drawn.
        noise_multiplier: noise standard deviation over clip norm.
        unit_reach: how far one unit can move the hospital's update, L2: clip norm times everything that scales it
            (learning rate, weight in the average, over divisor and grid step).
        most_units: more units than this the hospital does not have.
        clamp: largest absolute value that one coordinate can take, less what is public in it (such as weight decay).
    """

    sample_rate: float
    noise_multiplier: float
    unit_reach: float
    most_units: int
    clamp: float

    @property
    def noise(self) -> float:
        """Standard deviation of the update's noise."""
        return self.noise_multiplier * self.unit_reach


def summed_events(
    hospital: str, hospitals: Mapping[str, SummedHospital], survivors: Sequence[Collection[str]]
) -> tuple[SampledGaussian, ...]:
    """What the sums say of a unit at `hospital`: one event per round that it survived, with everybody's noise.

    Args:
        survivors: per round, whose updates are in the sum.

    >>> three = {name: SummedHospital(0.5, 2.0, 100.0, 100, 1e5) for name in "abc"}
    >>> event, = summed_events("a", three, [three, three])
    >>> event.steps, round(event.noise_multiplier / 2.0, 4)
    (2, 1.7321)
    """
    own = hospitals[hospital]
    return compose(
        SampledGaussian(own.sample_rate, math.hypot(*(hospitals[name].noise for name in sum_of)) / own.unit_reach, 1)
        for sum_of in (sorted(names) for names in survivors)
        if hospital in sum_of
    )


def final_model_guarantee(
    hospitals: Mapping[str, SummedHospital],
    survivors: Sequence[Collection[str]],
    *,
    values: int,
    delta: float,
    accountant: str = "pld",
) -> FinalModelGuarantee:
    """The worst hospital's epsilon against readers of sums; see this module for when it may be asked for.

    Args:
        survivors: per round, whose updates are in the sum.
        values: length of an update.

    Raises:
        ValueError: the numbers do not bear the proof; the message says which.
    """
    for name, hospital in hospitals.items():
        _check(name, hospital)
    exception = 2.0 * math.erfc(NOISE_TAIL / math.sqrt(2.0)) * values * sum(len(names) for names in survivors)
    worst = max(
        epsilon(summed_events(name, hospitals, survivors), (1.0 - _SHARE_OF_DELTA) * delta, accountant)
        for name in hospitals
    )
    if (1.0 + math.exp(worst)) * exception > _SHARE_OF_DELTA * delta:
        raise ValueError(f"values={values}: noise beyond the clamp's room is too likely at epsilon {worst:.2f}")
    return FinalModelGuarantee(epsilon=worst, delta=delta, assumes=_ASSUMPTIONS)


def _check(name: str, hospital: SummedHospital) -> None:
    if hospital.noise < _LEAST_NOISE:
        raise ValueError(
            f"{name}: noise of {hospital.noise:.2g} grid steps is finer than rounding; {_LEAST_NOISE} are needed"
        )
    room = hospital.most_units * hospital.unit_reach + NOISE_TAIL * hospital.noise
    if hospital.clamp < room:
        raise ValueError(f"{name}: clamp={hospital.clamp:.4g} leaves no room for units and noise, {room:.4g}")
