"""The informed adversary stays within the bound where noise is as declared, and beyond it where it is not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from privfm_attacks import candidates as candidates_module
from privfm_attacks.bench import Bench
from privfm_attacks.candidates import too_costly, unit_gradients
from privfm_attacks.identification import (
    CANDIDATES,
    highest_rate,
    pick_on_bench,
    pick_real,
    reconstruction_bound,
    share_interval,
)
from scipy import stats
from torch import Tensor

from privfm.dp import mechanism as mechanism_module
from privfm.dp.accounting import delta_for
from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import InjectedCoins, Stream
from privfm.dp.events import SampledGaussian
from privfm.dp.mechanism import StepMechanism
from privfm.federation.network import build_learner
from privfm.federation.planning import complete_plan, mechanism_of
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan

ALPHA = 1e-6
"""Trials draw the operating system's coins; a test fails by chance once in a million times."""

COINS = InjectedCoins(b"trials")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def plan_of(sample_rate: float = 0.5, rounds: int = 5, **privacy: Any) -> Plan:
    sections = {
        "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3},
        "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
        "privacy": {"sample_rate": sample_rate, "images_per_unit": 2, **privacy},
        "federation": {"rounds": rounds, "local_steps": 2, "retry_rounds": 0},
        "performance": {"device": "cpu", "threads": 1},
    }
    return complete_plan(parse_plan(sections), {HospitalId(name): 400 for name in ("a", "b", "c")}, 0.3)


def picked(plan: Plan, trials: int = 1000, share: float = 1.0) -> tuple[float, float, float]:
    """The rate's limits and the bound."""
    bench = Bench(plan, plan.hospitals[0])
    found = pick_on_bench(bench, plan.planned_steps, trials, share=share)
    return *found.interval(ALPHA), reconstruction_bound(bench.mechanism.event(plan.planned_steps))


def test_the_bound_of_a_gaussian_is_its_power_at_one_in_n() -> None:
    """min over epsilon of e^epsilon / N + delta(epsilon) is what the best test does at a false alarm rate of 1 / N."""
    for sigma in (0.4, 1.0, 3.0):
        power = stats.norm.cdf(1 / sigma - stats.norm.isf(1 / CANDIDATES))
        found = reconstruction_bound(SampledGaussian(1.0, sigma, 1))
        assert power <= found < power * 1.01 + 1e-4


def test_the_bound_is_the_least_over_epsilons() -> None:
    event = SampledGaussian(0.5, 1.7, 20)
    tried = [math.exp(e) / CANDIDATES + delta_for([event], e) for e in np.linspace(0, 4.6, 100)]
    assert reconstruction_bound(event) == pytest.approx(min(tried), rel=0.01)
    assert reconstruction_bound(event, 10) > reconstruction_bound(event) > 1 / CANDIDATES
    assert reconstruction_bound(SampledGaussian(1.0, 1e-6, 1)) == 1.0


def test_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    limits = [share_interval(int(hits), 50, 0.1) for hits in rng.binomial(50, 0.2, size=400)]
    assert np.mean([low <= 0.2 <= high for low, high in limits]) >= 0.9


@pytest.mark.parametrize(
    "plan",
    [plan_of(), plan_of(1.0, 2), plan_of(0.1, 10), plan_of(clip_quantile=0.5), plan_of(noise_terms=4)],
    ids=["default", "all drawn", "few drawn", "adaptive", "four draws"],
)
def test_noise_as_declared_stays_under_the_bound(plan: Plan) -> None:
    low, high, bound = picked(plan)
    assert 1 / CANDIDATES < low < bound < 0.5
    assert high > bound / 2  # the adversary is nearly as good as anybody may be
    highest = highest_rate(mechanism_of(plan, plan.hospitals[0]).event(plan.planned_steps))
    assert picked(plan, 400, share=1e-3)[0] > highest - 0.12


_release, _draw = StepMechanism.release, mechanism_module.poisson_draw


def halved(self: StepMechanism, clipped: ClippedSum, stream: Stream) -> Tensor:
    exact = clipped.vector / self.divisor
    return exact + 0.5 * (_release(self, clipped, stream) - exact)


def unclipped(self: StepMechanism, clipped: ClippedSum, stream: Stream) -> Tensor:
    """Twice as much as the clip norm allows."""
    return _release(self, clipped, stream) + clipped.vector / self.divisor


@pytest.mark.parametrize("planted", [halved, unclipped])
def test_too_little_noise_is_seen(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepMechanism, "release", planted)
    low, _, bound = picked(plan_of())
    assert low > 1.5 * bound


def test_draws_that_come_too_often_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanism_module, "poisson_draw", lambda units, rate, stream: _draw(units, 4 * rate, stream))
    low, _, bound = picked(plan_of(0.1, 10))
    assert low > 1.5 * bound


def test_nobody_who_was_never_drawn_is_known() -> None:
    plan = plan_of(0.05, 4)
    bench = Bench(plan, plan.hospitals[0])
    found = pick_on_bench(bench, 8, 1000, share=1e-3)
    assert found.rate_of_drawn > 0.99
    assert found.rate == pytest.approx(highest_rate(SampledGaussian(0.05, 1.0, 8)), abs=0.06)
    assert found.right[~found.drawn].mean() < 0.1


def test_a_network_s_own_gradients_tell_no_more_than_made_up_ones() -> None:
    plan = plan_of()
    learner = build_learner(plan)
    learner.network.train()
    rows = unit_gradients(learner, 20, seed=0)
    assert rows.shape == (20, 20)
    declared = replace(mechanism_of(plan, plan.hospitals[0]), clip_norm=float(rows.norm(dim=1).median()))
    bound = reconstruction_bound(declared.event(10), 20)
    noised = pick_real(declared, rows, 10, 200, COINS)
    bare = pick_real(replace(declared, noise_multiplier=1e-4), rows, 10, 200, COINS)
    assert bare.rate > 0.95 > bound > noised.interval(ALPHA)[0]
    lengthened = torch.eye(20) * 100  # as far apart as the clip norm lets them be
    assert pick_real(declared, lengthened, 10, 200, COINS).rate > noised.rate
    quieter = replace(declared, noise_multiplier=0.4 * declared.noise_multiplier)
    assert pick_real(quieter, lengthened, 10, 200, COINS).interval(ALPHA)[0] > bound


def test_gradients_keep_their_products_in_fewer_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, found = build_learner(plan_of()), []
    learner.network.train()
    rows_of = candidates_module._rows
    monkeypatch.setattr(candidates_module, "_rows", lambda *given: found.append(rows_of(*given)) or found[-1])
    few = unit_gradients(learner, 3, seed=1)
    (whole,) = found
    assert few.shape == (3, 3)
    assert torch.allclose(few @ few.T, whole @ whole.T, rtol=1e-3)
    assert whole.shape == (3, sum(value.numel() for value in learner.network.parameters() if value.requires_grad))


def test_what_would_take_minutes_is_not_tried() -> None:
    plan = plan_of()
    learner = build_learner(plan)
    assert not too_costly(learner)
    large = plan.model_copy(update={"data": plan.data.model_copy(update={"image_size": 1024})})
    assert too_costly(learner._replace(plan=large))
