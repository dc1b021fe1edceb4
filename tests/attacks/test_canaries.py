"""Canaries bound epsilon from below: under the claim where noise is as declared, above it where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from privfm_attacks.bounds import clopper_pearson_bound, epsilon_of_mu, gaussian_pair_bound, mu_of_errors, one_run_bound
from privfm_attacks.canaries import audit_canaries
from privfm_attacks.verdicts import AuditResult, Verdict
from torch import Tensor

from privfm.dp.accounting import epsilon
from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import Stream
from privfm.dp.events import SampledGaussian
from privfm.dp.mechanism import StepMechanism
from privfm.federation.planning import complete_plan
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan

DELTA = 1e-5


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def plan_of(sample_rate: float = 0.5, rounds: int = 20, **privacy: Any) -> Plan:
    sections = {
        "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3},
        "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
        "privacy": {"epsilon": 3.0, "sample_rate": sample_rate, "images_per_unit": 2, **privacy},
        "federation": {"rounds": rounds, "local_steps": 2, "retry_rounds": 0},
        "performance": {"device": "cpu", "threads": 1},
    }
    return complete_plan(parse_plan(sections), {HospitalId(name): 400 for name in ("a", "b", "c")}, 0.3)


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_epsilon_of_a_gaussian_is_the_accountant_s(mu: float) -> None:
    assert epsilon_of_mu(mu, DELTA) == pytest.approx(epsilon([SampledGaussian(1.0, 1 / mu, 1)], DELTA), rel=0.01)
    assert epsilon_of_mu(-1.0, DELTA) == epsilon_of_mu(0.0, DELTA) == 0.0


def pair(mu: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(mu, 1.0, count), rng.normal(0.0, 1.0, count)


def test_bounds_hold_in_nineteen_of_twenty() -> None:
    truth = epsilon_of_mu(1.0, DELTA)
    normal = [gaussian_pair_bound(*pair(1.0, 200, seed), DELTA, 0.05) for seed in range(200)]
    counted = [clopper_pearson_bound(*pair(1.0, 200, seed), 0.5, DELTA, 0.05) for seed in range(200)]
    assert np.mean(np.array(normal) > truth) <= 0.09
    assert np.mean(np.array(counted) > truth) <= 0.05
    assert np.median(normal) > 0.7 * truth
    assert np.median(counted) < np.median(normal)


def test_a_bound_whatever_the_scores_holds_too() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        included = rng.random(400) < 0.5
        found.append(one_run_bound(rng.normal(1.0 * included, 1.0), included, 100, DELTA, 0.05))
    assert np.mean(np.array(found) > epsilon_of_mu(1.0, DELTA)) <= 0.05
    assert np.median(found) > 0.5
    blind = one_run_bound(rng.normal(size=400), rng.random(400) < 0.5, 100, DELTA, 0.05)
    assert blind < 1.0


def test_nothing_told_apart_bounds_nothing() -> None:
    assert gaussian_pair_bound(*pair(0.0, 200, 1), DELTA, 0.05) < 0.6
    assert gaussian_pair_bound(*pair(-2.0, 200, 1), DELTA, 0.05) == 0.0
    assert clopper_pearson_bound(*pair(0.0, 20, 1), 1e9, DELTA, 0.05) == 0.0
    assert mu_of_errors(0.5, 0.5) == 0.0


@pytest.mark.parametrize(
    "settings",
    [{}, {"sample_rate": 0.05, "rounds": 100}, {"clip_quantile": 0.5}, {"sample_rate": 1.0, "rounds": 5}],
    ids=["default", "few drawn", "adaptive", "all drawn"],
)
def test_noise_as_declared_stays_under_the_claim(settings: dict[str, Any]) -> None:
    plan = plan_of(**settings)
    result = next(
        (found for found in (audit_canaries(plan) for _ in range(2)) if found.verdict is Verdict.NO_LEAK_DETECTED), None
    )
    assert result is not None  # a false alarm comes once in a hundred runs, two in a row do not
    assert result.figures["bound"] < result.figures["halved"]
    assert 0.3 < result.figures["bound"] < result.figures["claim"] < result.figures["ceiling"]
    assert result.figures["control"] > result.figures["claim"]
    assert result.figures["one_run"] <= result.figures["bound"] + 1.0


def test_few_canaries_settle_nothing() -> None:
    result = audit_canaries(plan_of(0.05, rounds=100), canaries=16)
    assert result.verdict is Verdict.INCONCLUSIVE


_release = StepMechanism.release


def halved(patch: pytest.MonkeyPatch) -> None:
    def release(self: StepMechanism, clipped: ClippedSum, stream: Stream) -> Tensor:
        exact = clipped.vector / self.divisor
        return exact + 0.5 * (_release(self, clipped, stream) - exact)

    patch.setattr(StepMechanism, "release", release)


def test_noise_halved_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    halved(monkeypatch)
    result = audit_canaries(plan_of())
    assert result.verdict is Verdict.LEAK
    assert result.figures["bound"] > result.figures["claim"]


def test_a_bound_above_the_claim_is_taken_anew_and_the_lower_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = iter([7.0, 2.0])  # of the canaries, then of others; what follows is control and power
    monkeypatch.setattr("privfm_attacks.canaries.gaussian_pair_bound", lambda *arguments: next(bounds, 50.0))
    result = audit_canaries(plan_of(1.0, 2))
    assert result.figures["bound"] == 2.0
    assert result.verdict is not Verdict.LEAK


def test_without_dp_any_bound_above_the_plans_limit_leaks() -> None:
    assert audit_canaries(plan_of(dp=False)).verdict is Verdict.LEAK


@pytest.mark.slow
@pytest.mark.parametrize(("sample_rate", "rounds"), [(0.05, 100), (0.1, 50), (0.5, 20)])
@pytest.mark.parametrize(("plant", "verdict"), [(None, Verdict.NO_LEAK_DETECTED), (halved, Verdict.LEAK)])
def test_nineteen_of_twenty_are_right(
    sample_rate: float,
    rounds: int,
    plant: Callable[[pytest.MonkeyPatch], None] | None,
    verdict: Verdict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if plant is not None:
        plant(monkeypatch)
    plan = plan_of(sample_rate, rounds)
    results: list[AuditResult] = [audit_canaries(plan) for _ in range(20)]
    assert sum(result.verdict is verdict for result in results) >= 19
    if plant is None:
        assert np.median([result.figures["bound"] for result in results]) >= 1.5
