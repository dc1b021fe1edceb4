"""What canaries show in updates, sums and the final model: less and less, and nothing where nobody is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from privfm_attacks import downstream
from privfm_attacks.bounds import epsilon_of_mu
from privfm_attacks.downstream import Downstream, epsilon_of_normals, look_downstream

from privfm.dp.accounting import epsilon
from privfm.federation.planning import complete_plan, mechanism_of
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan

DELTA = 1e-5


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def plan_of(optimizer: str = "sgd", strategy: str = "fedavg", **federation: Any) -> Plan:
    sections: dict[str, Any] = {
        "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3},
        "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
        "privacy": {"epsilon": 3.0, "sample_rate": 1.0, "images_per_unit": 2},
        "federation": {"rounds": 5, "local_steps": 2, "retry_rounds": 0, "strategy": strategy, **federation},
        "optimizer": {"name": optimizer},
        "performance": {"device": "cpu", "threads": 1},
    }
    return complete_plan(parse_plan(sections), {HospitalId(name): 400 for name in ("a", "b", "c")}, 0.3)


def look(plan: Plan, canaries: int = 400) -> Downstream:
    return look_downstream(plan, plan.hospitals[0], canaries, 0.05)


@pytest.mark.parametrize(("optimizer", "strategy"), [("sgd", "fedavg"), ("adam", "fedavg"), ("adam-bc", "fedadam")])
def test_less_is_seen_further_downstream(optimizer: str, strategy: str) -> None:
    plan = plan_of(optimizer, strategy)
    seen = min((look(plan) for _ in range(3)), key=lambda one: one.updates)  # one in twenty bounds is above the claim
    claim = epsilon([mechanism_of(plan, plan.hospitals[0]).event(plan.planned_steps)], DELTA)
    assert seen.sums < seen.updates < claim
    assert seen.updates > 0.2
    assert seen.sums_ceiling > 1.5 * seen.sums
    assert seen.updates_ceiling > 1.5 * seen.updates
    assert {len(scores) > 100 for scores in seen.scores.values()} == {True}


def test_of_plain_averages_canary_clients_estimate_what_the_sum_of_noise_allows() -> None:
    """Three equal hospitals' noise is in the final model, so that canaries stand out by 1 / sqrt(3) of their own.

    At 1e-5 the estimate hangs on the scatter's tails; at 0.05 it holds still.
    """
    plan = plan_of()
    mechanism = mechanism_of(plan, plan.hospitals[0])
    apart = plan.planned_steps**0.5 / mechanism.gradient_noise_multiplier / 3**0.5
    at = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"delta": 0.05})})
    found = look_downstream(at, at.hospitals[0], 400, 0.05).clients
    assert (
        epsilon_of_mu(apart, 0.05) / 2.5 < found < epsilon_of_mu(apart, 0.05) * 2.5
    )  # others' gradients are noise too


def test_half_the_noise_shows_in_updates_of_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, played = min(look(plan_of()).updates for _ in range(3)), downstream._played

    def halved(*args: Any) -> Any:
        *most, share = args if len(args) == 6 else (*args, 1.0)
        return played(*most, share / 2)

    monkeypatch.setattr(downstream, "_played", halved)
    less = max(look(plan_of()).updates for _ in range(3))
    assert less > 1.5 * whole


def test_canaries_that_pull_nothing_are_seen_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        downstream, "orthonormal", lambda places: (torch.zeros(len(places), 192), torch.ones(len(places), 64))
    )
    seen = look(plan_of())
    assert max(seen.updates, seen.sums) < 0.5


def test_a_long_plan_is_rehearsed_in_its_first_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(plan_of(), 40).rounds == 5
    monkeypatch.setattr(downstream, "MOST_STEPS", 13)
    assert look(plan_of(), 40).rounds == 2


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_normals_of_one_width_are_a_gaussian_mechanism_s(mu: float) -> None:
    assert epsilon_of_normals(mu, 1.0, DELTA) == pytest.approx(epsilon_of_mu(mu, DELTA), rel=1e-3)
    assert epsilon_of_normals(-mu, 1.0, DELTA) == pytest.approx(epsilon_of_mu(mu, DELTA), rel=1e-3)
    assert epsilon_of_normals(mu, 1.1, DELTA) > epsilon_of_normals(mu, 1.0, DELTA)


def test_normals_of_two_widths_by_counting() -> None:
    """The hockey-stick divergence at the epsilon found, by drawing from the one and weighing by the other."""
    found = epsilon_of_normals(0.5, 1.3, 0.05)
    drawn = np.random.default_rng(0).normal(0.5, 1.3, 400_000)
    ratio = drawn**2 / 2 - (drawn - 0.5) ** 2 / (2 * 1.3**2) - np.log(1.3)  # log of p over q
    assert np.maximum(1 - np.exp(found - ratio), 0).mean() == pytest.approx(0.05, rel=0.03)
    assert epsilon_of_normals(0.0, 1.0, DELTA) == 0.0
