"""Privacy loss distributions: the tight accountant, on a grid so fine that it no longer matters.

The distributions come from `dp-accounting` (Doroshenko et al. 2022, "connect the dots"), which rounds so that the
result is never below the truth whatever the grid. What is left to choose is the grid: the first of a series of halved
ones on which another halving would move the answer by less than 0.1%. The search for it runs on a fast double
(`privfm.dp.sketch`); the answer does not.

Convolutions by FFT carry rounding noise that grows with the number of steps and is *not* one-sided. `delta_slack`
bounds it, and every query is made at delta less that slack.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from privfm.dp.events import SampledGaussian, compose, total_steps
from privfm.dp.renyi import rdp_epsilon
from privfm.dp.sketch import sketch_delta, sketch_epsilon

__all__ = [
    "GRID_TOLERANCE",
    "delta_slack",
    "least_delta",
    "limit_mu_squared",
    "pld_delta",
    "pld_epsilon",
    "pld_epsilon_on_grid",
    "settled_grid",
]

GRID_TOLERANCE = 1e-3
NEGLIGIBLE_EPSILON = 1e-4
USELESS_EPSILON = 300.0
_CELLS = (2**5, 2**12)  # over one step's range, at least and at most, on the first grid
_FINEST_START = 2.0**-16
_HALVINGS = 12
_START_ERROR = 2e-3  # relative error of the Gaussian limit's standard deviation that the first grid may make
_UNIT_ROUNDOFF = sys.float_info.epsilon / 2


def delta_slack(events: Sequence[SampledGaussian]) -> float:
    """Upper estimate of the FFT's rounding noise in delta: one unit roundoff per self-convolved step.

    >>> delta_slack([SampledGaussian(0.1, 2.0, 10_000)]) < 1.2e-12
    True
    """
    return _UNIT_ROUNDOFF * (1 + total_steps(event for event in events if event.sample_rate < 1.0))


def pld_epsilon(events: tuple[SampledGaussian, ...], delta: float) -> float:
    """Smallest epsilon of the composed `events` at `delta`, from above.

    Above `USELESS_EPSILON`, where nobody is protected and e^epsilon soon leaves double precision: the Renyi bound.

    Raises:
        ValueError: delta too small to be resolved in double precision over that many steps.
    """
    _check_resolution(events, delta)
    if limit_mu_squared(events) > USELESS_EPSILON:
        loose = rdp_epsilon(events, delta)
        if loose > USELESS_EPSILON:
            return loose
    return pld_epsilon_on_grid(events, delta, settled_grid(events, delta))


def pld_delta(events: tuple[SampledGaussian, ...], epsilon: float) -> float:
    """Smallest delta of the composed `events` at `epsilon`, from above."""
    slack = delta_slack(events)
    grid = _settled(lambda grid: sketch_delta(events, epsilon, grid), starting_grid(events), 10 * slack)
    return min(1.0, float(_composed(events, grid).get_delta_for_epsilon(epsilon)) + slack)


def pld_epsilon_on_grid(events: tuple[SampledGaussian, ...], delta: float, grid: float) -> float:
    """Epsilon from one grid: still an upper bound, as loose as the grid is coarse."""
    return float(_composed(events, grid).get_epsilon_for_delta(delta - delta_slack(events)))


def settled_grid(events: Sequence[SampledGaussian], delta: float) -> float:
    """The first grid of the series that another halving would move by less than `GRID_TOLERANCE`, or negligibly."""
    return _settled(lambda grid: sketch_epsilon(events, delta, grid), starting_grid(events), NEGLIGIBLE_EPSILON)


def limit_mu_squared(events: Sequence[SampledGaussian]) -> float:
    """Squared mu of the Gaussian mechanism that `events` resemble (Dong, Roth & Su 2019, corollary 5.4); no bound."""
    return math.fsum(e.steps * e.sample_rate**2 * math.expm1(min(50.0, e.noise_multiplier**-2)) for e in events)


def starting_grid(events: Sequence[SampledGaussian]) -> float:
    """A power of two: coarse enough to be cheap, fine enough that a halving or two settles epsilon.

    Rounding to a grid of width h adds at most h^2/6 to the variance of each step's loss when that loss is spread over
    several cells; q^2 (e^(1/sigma^2) - 1) is the variance in the Gaussian limit. Where rare large losses rule instead
    (small q, small sigma), the limit says nothing and the number of cells over a step's range decides.
    """
    width = math.sqrt(12.0 * _START_ERROR * limit_mu_squared(events) / max(1, total_steps(events)))
    reach = max(_step_range(event) for event in events)
    width = min(reach / _CELLS[0], max(reach / _CELLS[1], width))
    return float(2.0 ** round(math.log2(max(width, _FINEST_START))))


def _step_range(event: SampledGaussian) -> float:
    """The largest loss of one convolution factor, leaving out noise beyond eight standard deviations."""
    sigma = event.noise_multiplier
    if event.sample_rate == 1.0:
        sigma /= math.sqrt(event.steps)
    exponent = (8.0 * sigma + 0.5) / sigma**2
    return exponent + math.log(event.sample_rate - (event.sample_rate - 1.0) * math.exp(-min(700.0, exponent)))


def _settled(value_on: Callable[[float], float], grid: float, negligible: float) -> float:
    value = value_on(grid)
    for _ in range(_HALVINGS):
        finer = value_on(grid / 2)
        if abs(value - finer) <= max(GRID_TOLERANCE * finer, negligible):
            break
        grid, value = grid / 2, finer
    return grid


def least_delta(events: Sequence[SampledGaussian]) -> float:
    """The smallest delta at which the slack does not show."""
    return 100 * delta_slack(events)


def _check_resolution(events: Sequence[SampledGaussian], delta: float) -> None:
    if delta < least_delta(events):
        raise ValueError(
            f"delta={delta}: must be >= {least_delta(events):.1e}, the least that double precision resolves over "
            f"{total_steps(events)} steps; use accountant='rdp' below it"
        )


@lru_cache(maxsize=32)
def _composed(events: tuple[SampledGaussian, ...], grid: float) -> Any:
    plds = [_one(event, grid) for event in compose(events)]
    total = plds[0]
    for pld in plds[1:]:
        total = total.compose(pld, tail_mass_truncation=1e-15)
    return total


def _one(event: SampledGaussian, grid: float) -> Any:
    if event.sample_rate == 1.0:  # Gaussians add up in closed form
        return _step(1.0, event.noise_multiplier / math.sqrt(event.steps), grid)
    return _step(event.sample_rate, event.noise_multiplier, grid).self_compose(event.steps)


@lru_cache(maxsize=32)
def _step(sample_rate: float, noise_multiplier: float, grid: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    return pld.from_gaussian_mechanism(
        noise_multiplier,
        value_discretization_interval=grid,
        sampling_prob=sample_rate,
        neighboring_relation=pld.NeighborRel.ADD_OR_REMOVE_ONE,
        use_connect_dots=True,
    )
