"""The forecast: its arithmetic against a simulation, and verdicts on cases whose outcome is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfm.dp.forecast import Forecast, forecast


def test_norms_are_those_of_simulated_noise() -> None:
    """Average of `hospitals` noised sums over the public divisor, summed over steps, in clip norms."""
    d, units, q, sigma, steps, hospitals = 4000, 50, 0.3, 2.5, 40, 4
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, sigma, (steps, hospitals, d)).mean(axis=1) / (q * units)
    said = forecast(
        parameters=d, nominal_units=units, sample_rate=q, noise_multiplier=sigma, steps=steps, hospitals=hospitals
    )
    assert said.noise_per_step == pytest.approx(np.linalg.norm(noise[0]), rel=0.05)
    assert said.noise_over_run == pytest.approx(np.linalg.norm(noise.sum(axis=0)), rel=0.05)
    assert said.noise_to_signal == pytest.approx(said.noise_over_run / steps)


def test_a_whole_model_from_scratch_on_68_patients_is_no_go() -> None:
    """Measured: noise of tens of clip norms a step at epsilon 8; nothing was learnt."""
    said = forecast(parameters=5_500_000, nominal_units=68, sample_rate=0.5, noise_multiplier=3.6, steps=100)
    assert said.noise_per_step > 20
    assert said.verdict == "no-go"
    assert said.patients_for_parity > 68


def test_published_successes_are_not_ruled_out() -> None:
    """De et al. 2022 (CIFAR-10 from scratch, epsilon 8) and ViP (Yu et al. 2023) learnt under these numbers."""
    de = forecast(parameters=8_900_000, nominal_units=50_000, sample_rate=0.0819, noise_multiplier=3.0, steps=2468)
    vip = forecast(
        parameters=100_000_000,
        nominal_units=233_000_000,
        sample_rate=98_304 / 233_000_000,
        noise_multiplier=0.5,
        steps=6_000,
    )
    assert de.verdict == vip.verdict == "go"


@given(
    parameters=st.integers(1, 10**9),
    units=st.integers(1, 10**6),
    q=st.floats(1e-4, 1.0),
    sigma=st.floats(0.1, 100.0),
    steps=st.integers(1, 10**5),
    hospitals=st.integers(1, 100),
)
def test_with_the_patients_it_asks_for_the_verdict_changes(
    parameters: int, units: int, q: float, sigma: float, steps: int, hospitals: int
) -> None:
    def with_patients(count: int) -> Forecast:
        return forecast(
            parameters=parameters,
            nominal_units=count,
            sample_rate=q,
            noise_multiplier=sigma,
            steps=steps,
            hospitals=hospitals,
        )

    first = with_patients(units)
    assert with_patients(first.patients_for_parity + 1).verdict != "no-go"
    assert with_patients(first.patients_for_go + 1).verdict == "go"
    assert math.isclose(with_patients(2 * units).noise_to_signal, first.noise_to_signal / 2)


def test_the_reason_names_the_way_out() -> None:
    heavy = forecast(parameters=10**6, nominal_units=100, sample_rate=0.1, noise_multiplier=2.0, steps=100)
    assert heavy.verdict == "no-go"
    assert "fewer parameters, or find more patients" in heavy.reason
    assert (
        f"shorter than that with more than {heavy.patients_for_parity} patients a hospital (here 100)" in heavy.reason
    )
    doubtful = forecast(parameters=100, nominal_units=60, sample_rate=0.5, noise_multiplier=3.0, steps=10)
    assert doubtful.verdict == "doubtful"
    assert f"below 0.1, with more than {doubtful.patients_for_go} patients a hospital (here 60)" in doubtful.reason
    assert f" {doubtful.patients_for_parity} " not in doubtful.reason  # 19: fewer than there are
    light = forecast(parameters=100, nominal_units=10_000, sample_rate=0.1, noise_multiplier=2.0, steps=100)
    assert "room to learn" in light.reason


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": 0},
        {"nominal_units": 0},
        {"sample_rate": 0.0},
        {"sample_rate": 1.1},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.inf},
        {"steps": 0},
        {"hospitals": 0},
    ],
)
def test_a_value_out_of_bounds_is_named(change: dict[str, float]) -> None:
    usual = {"parameters": 100, "nominal_units": 10, "sample_rate": 0.1, "noise_multiplier": 1.0, "steps": 10}
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        forecast(**(usual | change))  # type: ignore[arg-type]
