"""How much noise a target epsilon needs.

The search runs on a cheap grid or accountant; what it ends with is checked by `privfm.dp.accounting.epsilon` itself, on
the safe side: the epsilon of the noise returned is never above the target, and not below 99.5% of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from privfm.dp.accounting import check_delta, check_epsilon
from privfm.dp.accounting import epsilon as epsilon_of
from privfm.dp.events import SampledGaussian, compose
from privfm.dp.filter import RdpFilter
from privfm.dp.pld import least_delta, limit_mu_squared, settled_grid
from privfm.dp.sketch import sketch_epsilon
from privfm.dp.workers import ask_workers, serve

__all__ = [
    "LEAST_NOISE",
    "CalibratedNoise",
    "NoiseRequest",
    "calibrate_noise",
    "calibrate_noise_under",
    "calibrate_noises",
    "cap_for_plan",
    "processes_for",
    "serve_calibrations",
]

LEAST_NOISE, _MOST_NOISE = 0.1, 1e6
_BAND = (0.995, 1.0)  # of the target, for the result
_SEARCH_BAND = (0.9985, 0.9998)  # of the target, for the accountant's double, which is off by a few millionths
_TYPICAL_SLOPE, _FLATTEST_SLOPE = -1.3, -0.2  # of log epsilon over log noise
_MOST_EVALUATIONS = 200
_HUGE = 1e300
_ORDER_FACTORS = tuple(2.0 ** (k / 8) for k in range(-24, 9))
_LEAST_MU_SQUARED = 1e-12
_WORKER = "from privfm.dp.calibration import serve_calibrations; serve_calibrations()"
_PARALLEL_FROM = 24  # below this many requests, starting processes costs more than it saves


@dataclass(frozen=True)
class NoiseRequest:
    """One hospital's target: (epsilon, delta) after `steps` steps at `sample_rate`, on top of what was `spent`."""

    epsilon: float
    delta: float
    sample_rate: float
    steps: int
    spent: tuple[SampledGaussian, ...] = ()


@dataclass(frozen=True)
class CalibratedNoise:
    """The noise multiplier that meets a request, and the epsilon that it really gives."""

    noise_multiplier: float
    epsilon: float


def calibrate_noise(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: str = "pld",
    spent: Sequence[SampledGaussian] = (),
) -> float:
    """The noise multiplier at which `steps` steps (and what was `spent` before) cost `epsilon` at `delta`.

    Guarantees:
        `epsilon()` of the result is in [0.995, 1.0] times the target. Where even `LEAST_NOISE` costs less than that
        (a target that the sampling alone nearly meets), the result is `LEAST_NOISE`.

    Raises:
        ValueError: a value out of its bounds; a budget that `spent` has used up.

    >>> sigma = calibrate_noise(epsilon=8.0, delta=1e-5, sample_rate=0.1, steps=1000)
    >>> 7.96 <= epsilon_of([SampledGaussian(0.1, sigma, 1000)], 1e-5) <= 8.0
    True
    """
    return _calibrated(NoiseRequest(epsilon, delta, sample_rate, steps, compose(spent)), accountant).noise_multiplier


def calibrate_noises(
    requests: Sequence[NoiseRequest], *, accountant: str = "pld", processes: int | None = None
) -> tuple[CalibratedNoise, ...]:
    """`calibrate_noise` for many hospitals; equal requests are worked out once.

    Args:
        processes: worker processes; None takes one for fewer than 24 different requests and two otherwise.

    >>> few = calibrate_noises([NoiseRequest(8.0, 1e-5, 0.1, 100)] * 3, accountant="rdp")
    >>> len(set(few))
    1
    """
    distinct = tuple(dict.fromkeys(requests))
    processes = processes or (processes_for(len(distinct)) if accountant == "pld" else 1)
    if processes == 1:
        return tuple(_calibrated(request, accountant) for request in requests)
    found = _calibrated_by_many(distinct, accountant, processes)
    return tuple(found[request] for request in requests)


def processes_for(budgets: int) -> int:
    """How many processes to work out so many different budgets with, where starting them costs less than it saves."""
    return 2 if budgets >= _PARALLEL_FROM else 1


@lru_cache(maxsize=8)  # a plan is completed more than once, and what workers remember ends with them
def _calibrated_by_many(
    distinct: tuple[NoiseRequest, ...], accountant: str, processes: int
) -> dict[NoiseRequest, CalibratedNoise]:
    replies = ask_workers(_WORKER, [{**asdict(request), "accountant": accountant} for request in distinct], processes)
    return {
        request: _calibrated(request, accountant) if reply is None else CalibratedNoise(**reply)
        for request, reply in zip(distinct, replies, strict=True)
    }


def serve_calibrations() -> None:
    """Be a worker of `calibrate_noises`."""
    serve(_reply)


def _reply(job: dict[str, Any]) -> dict[str, float]:
    spent = tuple(SampledGaussian(**event) for event in job.pop("spent"))
    accountant = job.pop("accountant")
    return asdict(_calibrated(NoiseRequest(**job, spent=spent), accountant))


def calibrate_noise_under(
    cap: RdpFilter, *, sample_rate: float, steps: int, spent: Sequence[SampledGaussian] = ()
) -> float:
    """The least noise multiplier with which exactly `steps` steps, and no step more, fit under a lifetime cap.

    Args:
        cap: the ledger's filter.
        spent: the ledger's events.

    Raises:
        ValueError: the cap has no room left, or one that no noise up to 1e6 fits into.

    >>> cap = RdpFilter.for_cap(8.0, 1e-5)
    >>> sigma = calibrate_noise_under(cap, sample_rate=0.1, steps=1000)
    >>> cap.steps_that_fit(SampledGaussian(0.1, sigma, 1))
    1000
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: must be >= 1")
    before = compose(spent)

    def fits(noise_multiplier: float) -> bool:
        return cap.admits([*before, SampledGaussian(sample_rate, noise_multiplier, steps)])

    low, high = math.log(LEAST_NOISE), math.log(_MOST_NOISE)
    if not fits(math.exp(high)):
        raise ValueError(f"epsilon={cap.epsilon}: the lifetime cap leaves no room for steps={steps}")
    if fits(math.exp(low)):
        return LEAST_NOISE
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(math.exp(middle)) else (middle, high)
    return math.exp(high)


def cap_for_plan(*, epsilon: float, delta: float, sample_rate: float, steps: int) -> RdpFilter:
    """The lifetime cap whose order lets a lifetime of `steps` steps at `sample_rate` do with the least noise.

    `RdpFilter.for_cap` supposes steps that look Gaussian; with few patients sampled and little noise another order may
    leave room for many times more steps. Any order is sound as long as it is fixed before the first release.

    >>> cap_for_plan(epsilon=8.0, delta=1e-5, sample_rate=0.002, steps=5000).order < RdpFilter.for_cap(8.0, 1e-5).order
    True
    """
    default = RdpFilter.for_cap(epsilon, delta).order
    caps = [RdpFilter(epsilon, delta, default)]
    for factor in _ORDER_FACTORS:
        with suppress(ValueError):  # an order too low to leave any budget
            caps.append(RdpFilter(epsilon, delta, round(1.0 + (default - 1.0) * factor, 3)))
    return min(caps, key=lambda cap: calibrate_noise_under(cap, sample_rate=sample_rate, steps=steps))


@lru_cache(maxsize=4096)
def _calibrated(request: NoiseRequest, accountant: str) -> CalibratedNoise:
    check_epsilon(request.epsilon)
    check_delta(request.delta)
    if request.steps < 1:
        raise ValueError(f"steps={request.steps}: must be >= 1")
    least = least_delta(_with_noise(request, 1.0))  # checks the sampling rate too
    if accountant == "pld" and request.delta < least:
        raise ValueError(
            f"delta={request.delta:g}: double precision ends before it over {request.steps} steps; take at least "
            f"{least:.1e}"
        )
    if request.spent and epsilon_of(request.spent, request.delta, accountant) >= request.epsilon:
        raise ValueError(f"epsilon={request.epsilon}: already spent; nothing is left to calibrate for")

    def cost(noise_multiplier: float) -> float:
        return epsilon_of(_with_noise(request, noise_multiplier), request.delta, accountant)

    guess = _gaussian_limit_noise(request)
    if accountant == "pld":
        guess = _sketched_noise(request, guess)
    noise_multiplier = _search(cost, request.epsilon, _BAND, guess)
    return CalibratedNoise(noise_multiplier, cost(noise_multiplier))


def _with_noise(request: NoiseRequest, noise_multiplier: float) -> tuple[SampledGaussian, ...]:
    return compose(request.spent, [SampledGaussian(request.sample_rate, noise_multiplier, request.steps)])


def _sketched_noise(request: NoiseRequest, guess: float) -> float:
    """Where the accountant's fast double meets the target, on the grid that the accountant will use there."""
    for _ in range(2):
        grid = settled_grid(_with_noise(request, guess), request.delta)

        def cost(noise_multiplier: float, grid: float = grid) -> float:
            return sketch_epsilon(_with_noise(request, noise_multiplier), request.delta, grid)

        guess = _search(cost, request.epsilon, _SEARCH_BAND, guess)
    return guess


def _search(cost: Callable[[float], float], target: float, band: tuple[float, float], guess: float) -> float:
    """A noise multiplier whose cost lies in `band * target`: secant steps in log-log, kept inside a bracket.

    Cost falls with noise. `low` and `high` are the logarithms of noise that is too little, and of more than enough.
    """
    least, most = math.log(LEAST_NOISE), math.log(_MOST_NOISE)
    low, high, least_was_tried = least, most, False
    aim = math.log(target * (band[0] + band[1]) / 2)
    x, slope, last = min(most, max(least, math.log(guess))), _TYPICAL_SLOPE, None
    for _ in range(_MOST_EVALUATIONS):
        value = cost(math.exp(x))
        if band[0] * target <= value <= band[1] * target or (value <= target and x == least):
            return LEAST_NOISE if x == least else math.exp(x)
        least_was_tried |= x == least
        low, high = (x, high) if value > band[1] * target else (low, x)
        y = math.log(min(_HUGE, max(1 / _HUGE, value)))
        if last is not None and x != last[0]:
            slope = min(_FLATTEST_SLOPE, (y - last[1]) / (x - last[0]))
        last = (x, y)
        x += (aim - y) / slope
        if not low < x < high:
            x = least if x <= least and not least_was_tried else (low + high) / 2
    raise ValueError(f"epsilon={target}: no noise multiplier in [{LEAST_NOISE}, {_MOST_NOISE}] meets it")


def _gaussian_limit_noise(request: NoiseRequest) -> float:
    """Where to start: the central limit (Dong, Roth & Su 2019, corollary 5.4), a few per cent too little noise."""
    mu_squared = _gaussian_mu(request.epsilon, request.delta) ** 2
    mu_squared -= limit_mu_squared(request.spent)
    variance = max(mu_squared, _LEAST_MU_SQUARED) / (request.steps * request.sample_rate**2)
    return 1.0 / math.sqrt(math.log1p(variance))


def _gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu of a Gaussian mechanism that is exactly (epsilon, delta)-DP (Balle & Wang 2018, theorem 5)."""
    from scipy.special import log_ndtr, ndtr

    low, high = 1e-8, 1e4
    while high > low * (1 + 1e-6):
        mu = math.sqrt(low * high)
        spent = ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + min(-epsilon, log_ndtr(-mu / 2 - epsilon / mu)))
        low, high = (mu, high) if spent < delta else (low, mu)
    return low
