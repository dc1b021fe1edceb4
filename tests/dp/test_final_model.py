"""The guarantee for readers of sums: its lemma checked number by number, and its refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

from privfm.dp.accounting import epsilon
from privfm.dp.events import SampledGaussian
from privfm.dp.final_model import SummedHospital, final_model_guarantee, summed_events

HOSPITAL = SummedHospital(sample_rate=0.5, noise_multiplier=2.0, unit_reach=1000.0, most_units=100, clamp=1.2e5)
EQUAL = dict.fromkeys("abcde", HOSPITAL)


def rounded_gaussian(x: float, noise: float, integers: Any) -> Any:
    """Distribution of the stochastic rounding of x + N(0, noise^2), from its definition: floor(value + uniform)."""

    def integral_of_cdf(t: Any) -> Any:
        return t * ndtr(t / noise) + noise * np.exp(-((t / noise) ** 2) / 2) / math.sqrt(2 * math.pi)

    below = [integral_of_cdf(integers - x + shift) for shift in (-1.0, 0.0, 1.0)]
    return below[2] - 2 * below[1] + below[0]


def smooth_sum(x: float, noise: float, kernels: int, integers: Any) -> Any:
    """Density, at integers, of x + N(0, noise^2) + as many triangular variables, by its characteristic function."""
    w = np.linspace(-12.0 / noise, 12.0 / noise, 4001)
    transform = np.exp(-((noise * w) ** 2) / 2) * np.sinc(w / (2 * math.pi)) ** (2 * kernels)
    return np.array([np.sum(transform * np.cos(w * (k - x))) for k in integers]) * (w[1] - w[0]) / (2 * math.pi)


@pytest.mark.parametrize(
    ("noises", "agrees"), [((4.0, 4.0, 4.0), True), ((4.0, 9.0, 5.0), True), ((0.3, 0.3, 0.3), False)]
)
def test_rounded_noises_add_up_to_a_function_of_the_unrounded_sum(noises: tuple[float, ...], agrees: bool) -> None:
    xs, total = (0.37, -1.91, 2.5), math.hypot(*noises)
    span = np.arange(-200, 201)
    summed = np.ones(1)
    for x, noise in zip(xs, noises, strict=True):
        summed = np.convolve(summed, rounded_gaussian(x, noise, span))
    middle = np.arange(-60, 61)
    found = summed[middle + 3 * 200]
    expected = smooth_sum(sum(xs), total, len(xs), middle)
    assert (np.max(np.abs(found - expected)) < 1e-14) == agrees


def test_equal_hospitals_have_sqrt_k_times_the_noise() -> None:
    guarantee = final_model_guarantee(EQUAL, [EQUAL] * 10, values=10_000, delta=1e-5)
    assert guarantee.epsilon == epsilon([SampledGaussian(0.5, 2.0 * math.sqrt(5), 10)], 0.99e-5)
    assert guarantee.epsilon < epsilon([SampledGaussian(0.5, 2.0, 10)], 1e-5) / 1.8


def test_who_dropped_out_protects_nobody() -> None:
    events = summed_events("a", EQUAL, ["abcde", "abc", "bcd"])
    assert {(e.steps, round(e.noise_multiplier, 9)) for e in events} == {
        (1, round(2.0 * math.sqrt(5), 9)),
        (1, round(2.0 * math.sqrt(3), 9)),
    }


def test_the_hospital_whose_units_reach_farthest_decides() -> None:
    mixed = {"near": HOSPITAL, "far": replace(HOSPITAL, unit_reach=1500.0, clamp=1.8e5)}
    far = summed_events("far", mixed, [mixed])
    assert far[0].noise_multiplier == pytest.approx(math.hypot(2000.0, 3000.0) / 1500.0)
    assert final_model_guarantee(mixed, [mixed], values=10, delta=1e-5).epsilon == epsilon(far, 0.99e-5)


@pytest.mark.parametrize(
    ("hospital", "complaint"),
    [
        (replace(HOSPITAL, unit_reach=1.9), "finer than rounding"),
        (replace(HOSPITAL, clamp=1.0e5), "no room"),
        (replace(HOSPITAL, most_units=200), "no room"),
    ],
)
def test_numbers_that_do_not_bear_the_proof_are_refused(hospital: SummedHospital, complaint: str) -> None:
    cohort = EQUAL | {"a": hospital}
    with pytest.raises(ValueError, match=f"a: .*{complaint}"):
        final_model_guarantee(cohort, [cohort], values=10, delta=1e-5)


def test_a_large_epsilon_makes_clamping_matter() -> None:
    loud = {name: replace(HOSPITAL, noise_multiplier=0.2) for name in "ab"}
    with pytest.raises(ValueError, match="too likely"):
        final_model_guarantee(loud, [loud] * 100, values=10**7, delta=1e-5)
