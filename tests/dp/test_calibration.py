"""Calibration: on the safe side of the target, and not far from it."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfm.dp import calibration
from privfm.dp.accounting import epsilon
from privfm.dp.calibration import (
    LEAST_NOISE,
    NoiseRequest,
    calibrate_noise,
    calibrate_noise_under,
    calibrate_noises,
    cap_for_plan,
)
from privfm.dp.events import SampledGaussian
from privfm.dp.filter import RdpFilter
from privfm.dp.workers import ask_workers


def share_of_target(request: NoiseRequest, noise_multiplier: float, accountant: str = "pld") -> float:
    event = SampledGaussian(request.sample_rate, noise_multiplier, request.steps)
    return epsilon([*request.spent, event], request.delta, accountant) / request.epsilon


@settings(max_examples=15, deadline=None)
@given(
    target=st.floats(0.2, 50.0),
    delta=st.sampled_from([1e-4, 1e-5, 1e-7]),
    sample_rate=st.floats(2e-3, 1.0),
    steps=st.integers(1, 3000),
)
def test_the_result_meets_the_target_from_below(target: float, delta: float, sample_rate: float, steps: int) -> None:
    request = NoiseRequest(target, delta, sample_rate, steps)
    noise = calibrate_noise(epsilon=target, delta=delta, sample_rate=sample_rate, steps=steps)
    share = share_of_target(request, noise)
    assert share <= 1.0
    assert share >= 0.995 or noise == LEAST_NOISE


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_other_accountants_keep_the_same_promise(accountant: str) -> None:
    request = NoiseRequest(4.0, 1e-5, 0.1, 10)
    noise = calibrate_noise(epsilon=4.0, delta=1e-5, sample_rate=0.1, steps=10, accountant=accountant)
    assert 0.995 <= share_of_target(request, noise, accountant) <= 1.0


def test_a_looser_accountant_asks_for_more_noise() -> None:
    by_pld, by_rdp = (
        calibrate_noise(epsilon=8.0, delta=1e-5, sample_rate=0.1, steps=1000, accountant=each)
        for each in ("pld", "rdp")
    )
    assert by_pld < by_rdp < 1.2 * by_pld


def test_what_was_spent_before_leaves_less() -> None:
    spent = (SampledGaussian(0.1, 2.0, 500),)
    request = NoiseRequest(8.0, 1e-5, 0.1, 500, spent)
    noise = calibrate_noise(epsilon=8.0, delta=1e-5, sample_rate=0.1, steps=500, spent=spent)
    assert noise > calibrate_noise(epsilon=8.0, delta=1e-5, sample_rate=0.1, steps=500)
    assert 0.995 <= share_of_target(request, noise) <= 1.0


def test_a_target_that_sampling_alone_meets_gets_the_least_noise() -> None:
    assert calibrate_noise(epsilon=8.0, delta=1e-5, sample_rate=1e-7, steps=10) == LEAST_NOISE


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"epsilon": -1.0}, "epsilon=-1.0"),
        ({"epsilon": math.inf}, "epsilon=inf"),
        ({"epsilon": math.nan}, "epsilon=nan"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"sample_rate": 0.0}, "sample_rate=0.0"),
        ({"sample_rate": 1.5}, "sample_rate=1.5"),
        ({"steps": 0}, "steps=0"),
        ({"spent": (SampledGaussian(0.5, 1.0, 1000),)}, "epsilon=8.0: already spent"),
        ({"accountant": "gdp"}, "accountant='gdp'"),
    ],
)
def test_what_cannot_be_calibrated_is_named(change: dict[str, object], complaint: str) -> None:
    usual: dict[str, object] = {"epsilon": 8.0, "delta": 1e-5, "sample_rate": 0.1, "steps": 100}
    with pytest.raises(ValueError, match=complaint):
        calibrate_noise(**(usual | change))  # type: ignore[arg-type]


def test_many_hospitals_get_what_each_would_get_alone() -> None:
    requests = [NoiseRequest(8.0, 1e-5, q, 200) for q in (0.1, 0.2, 0.1)]
    together = calibrate_noises(requests)
    assert together[0] == together[2]
    for request, found in zip(requests, together, strict=True):
        alone = calibrate_noise(epsilon=8.0, delta=1e-5, sample_rate=request.sample_rate, steps=200)
        assert found.noise_multiplier == alone
        assert found.epsilon == share_of_target(request, alone) * 8.0


def test_worker_processes_find_the_same() -> None:
    spent = (SampledGaussian(0.1, 4.0, 10),)
    requests = [NoiseRequest(8.0, 1e-5, q, 50, spent) for q in (0.15, 0.25)]
    jobs = [{**asdict(request), "accountant": "pld"} for request in requests]
    alone = calibrate_noises(requests, processes=1)
    assert ask_workers(calibration._WORKER, jobs, 2) == [asdict(each) for each in alone]
    assert calibrate_noises(requests, processes=2) == alone


@pytest.mark.parametrize("worker", ["raise SystemExit", "print('no JSON')", "input(); print('{')"])
def test_what_workers_do_not_answer_is_worked_out_here(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_WORKER", worker)
    calibration._calibrated_by_many.cache_clear()
    requests = [NoiseRequest(8.0, 1e-5, q, 50) for q in (0.15, 0.25)]
    assert calibrate_noises(requests, processes=2) == calibrate_noises(requests, processes=1)


def test_what_cannot_be_calibrated_is_named_where_workers_calibrate() -> None:
    requests = [NoiseRequest(8.0, delta, 0.15, 50) for delta in (1e-5, 2.0)]
    with pytest.raises(ValueError, match=r"delta=2\.0"):
        calibrate_noises(requests, processes=2)


@pytest.mark.parametrize("by", ["file", "standard input"])
def test_a_program_without_a_main_guard_runs_once(by: str, tmp_path: Path) -> None:
    """Worker processes that import the main module would run it again, or not find it."""
    program = tmp_path / "program.py"
    program.write_text(
        "from privfm.dp import calibration\n"
        "ask = calibration.ask_workers\n"
        "calibration.ask_workers = lambda *arguments: print(ask(*arguments).count(None)) or ask(*arguments)\n"
        "calibration.calibrate_noises([calibration.NoiseRequest(8.0, 1e-5, q, 5) for q in (0.1, 0.2)], processes=2)\n"
    )
    with program.open() as opened:
        command = [sys.executable, *([str(program)] if by == "file" else ["-"])]
        done = subprocess.run(command, stdin=opened, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@settings(max_examples=20, deadline=None)
@given(
    cap=st.floats(0.5, 20.0),
    sample_rate=st.floats(1e-2, 1.0),
    steps=st.integers(1, 5000),
    spent_share=st.sampled_from([0.0, 0.3]),
)
def test_noise_under_a_cap_fits_the_steps_and_no_step_more(
    cap: float, sample_rate: float, steps: int, spent_share: float
) -> None:
    filter_ = RdpFilter.for_cap(cap, 1e-5)
    once = SampledGaussian(0.1, 5.0, 1)
    spent = [once.repeated(int(spent_share * filter_.steps_that_fit(once)))]
    noise = calibrate_noise_under(filter_, sample_rate=sample_rate, steps=steps, spent=spent)
    fitting = filter_.steps_that_fit(SampledGaussian(sample_rate, noise, 1), spent)
    assert fitting == steps or (noise == LEAST_NOISE and fitting > steps)


@pytest.mark.parametrize(("target", "sample_rate", "steps"), [(0.5, 0.01, 800), (8.0, 0.002, 5000), (8.0, 0.5, 60)])
def test_a_cap_made_for_a_plan_needs_little_more_noise_than_the_loose_accountant(
    target: float, sample_rate: float, steps: int
) -> None:
    """One order, fixed ahead, against the best order afterwards."""
    cap = cap_for_plan(epsilon=target, delta=1e-5, sample_rate=sample_rate, steps=steps)
    noise = calibrate_noise_under(cap, sample_rate=sample_rate, steps=steps)
    loose = calibrate_noise(epsilon=target, delta=1e-5, sample_rate=sample_rate, steps=steps, accountant="rdp")
    assert noise <= 1.02 * loose
    assert noise <= calibrate_noise_under(RdpFilter.for_cap(target, 1e-5), sample_rate=sample_rate, steps=steps)


def test_a_cap_without_room_is_named() -> None:
    filter_ = RdpFilter.for_cap(1.0, 1e-5)
    with pytest.raises(ValueError, match=r"epsilon=1\.0: the lifetime cap leaves no room for steps=10"):
        calibrate_noise_under(filter_, sample_rate=0.5, steps=10, spent=[SampledGaussian(0.5, 0.5, 100)])


def test_the_search_survives_a_cost_that_jumps() -> None:
    """A cost with a plateau and a cliff, as grids and sampling make them: the bracket still closes in."""

    def cost(noise: float) -> float:
        return math.inf if noise < 0.7 else 20.0 if noise < 3.0 else 8.0 * (3.01 / noise)

    found = calibration._search(cost, 8.0, (0.995, 1.0), guess=0.5)
    assert 0.995 * 8.0 <= cost(found) <= 8.0


@pytest.mark.slow
def test_a_hundred_hospitals_of_ten_thousand_steps() -> None:
    requests = [NoiseRequest(float(1 + i % 8), 1e-5, 0.002 * 1.04**i, 10_000) for i in range(100)]
    for request, found in zip(requests, calibrate_noises(requests), strict=True):
        assert 0.995 * request.epsilon <= found.epsilon <= request.epsilon
