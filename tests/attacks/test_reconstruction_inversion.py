"""Images come back from gradients that nothing hides, in every way that is claimed; from noised ones they do not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from privfm_attacks.inversion import invert, psnr, solve_patches
from privfm_attacks.rebuilding import Closed, Iterated, Rebuilt, Way, mean_release
from privfm_attacks.target import Gallery, Target, embeddings, small, vulnerable, without_closed_form

from privfm.dp.coins import InjectedCoins
from privfm.federation.network import build_learner
from privfm.federation.planning import complete_plan, mechanism_of
from privfm.ids import HospitalId
from privfm.plan import OptimizerPlan, Plan, parse_plan

COINS = InjectedCoins(b"releases")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def plan_of(**sections: dict[str, Any]) -> Plan:
    base: dict[str, dict[str, Any]] = {
        "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3},
        "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
        "privacy": {"images_per_unit": 3},
        "federation": {"rounds": 5, "local_steps": 2, "retry_rounds": 0},
        "performance": {"device": "cpu", "threads": 1},
    }
    whole = {name: base.get(name, {}) | sections.get(name, {}) for name in {*base, *sections}}
    return complete_plan(parse_plan(whole), {HospitalId(name): 40 for name in ("a", "b", "c")}, 0.3)


def closed_of(**sections: dict[str, Any]) -> Closed:
    target = vulnerable(plan_of(**sections))
    return Closed(target, Gallery.made(target.plan, 60))


def test_decibels() -> None:
    image = torch.linspace(-1, 3, 10)
    everywhere, half = torch.ones(10, dtype=torch.bool), torch.arange(10) < 5
    assert psnr(image + 0.4, image, everywhere) == pytest.approx(20.0)
    assert psnr(image + 0.4 * ~half, image, half) > 100
    assert psnr(2 * image + 0.8, 2 * image, everywhere) == pytest.approx(20.0)


def test_patches_solve_the_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    positions, patches = torch.randn(6, 9, generator=generator), torch.randn(6, 4, generator=generator)
    exact = solve_patches(positions.double(), (positions.T @ patches).double(), torch.zeros(6, 4).double())
    assert torch.allclose(exact.float(), patches, atol=1e-4)
    expected = torch.linalg.lstsq(positions.T, positions.T @ patches).solution
    assert torch.allclose(exact.float(), expected, atol=1e-3)


def test_noise_alone_leaves_what_was_known() -> None:
    generator, prior = torch.Generator().manual_seed(1), torch.full((6, 4), 0.5)
    positions, weights = torch.randn(6, 64, generator=generator), torch.randn(64, 4, generator=generator)
    assert torch.allclose(solve_patches(positions, weights, prior, noise_std=1.0), prior, atol=0.05)
    strong = 100 * positions
    found = solve_patches(strong, strong.T @ (prior + 1) + weights, prior, noise_std=1.0)
    assert torch.allclose(found, prior + 1, atol=0.02)


@pytest.mark.parametrize(
    "objective", [{"name": "mae"}, {"name": "simmim"}, {"name": "mae", "mask_ratio": 0.25}, {"name": "dino"}]
)
def test_one_image_comes_back_from_one_gradient(objective: dict[str, Any]) -> None:
    way = closed_of(objective=objective).one_image(range(6))
    assert min(one.psnr for one in way.rebuilt) >= 30.0
    assert way.baseline < 25.0
    assert way.better(0.01)[0] == 1.0


def test_hidden_patches_do_not_come_back() -> None:
    closed = closed_of()
    rebuilt = closed.one_image([3]).rebuilt[0]
    assert float(rebuilt.where.float().mean()) == 0.25
    assert torch.equal(rebuilt.image[~rebuilt.where], closed.gallery.average[~rebuilt.where])


def test_a_network_that_trains_less_has_no_closed_form() -> None:
    target = vulnerable(plan_of())
    assert without_closed_form(target.learner) is None
    own = build_learner(plan_of(model={"trainable": "norm-bias"}))
    assert without_closed_form(own) == "it does not train its positions and its patch embedding"
    shape = dict.fromkeys(("patch_size", "width", "depth", "heads"))
    convolutions = build_learner(plan_of(model={"backbone": "resnet18", "trainable": "all", **shape}))
    assert without_closed_form(convolutions) == "it is no plain vision transformer"
    for parameter in target.learner.network.parameters():
        parameter.requires_grad_(parameter.dim() < 2)
    with pytest.raises(KeyError):
        embeddings(target, target.start)


def test_plain_descent_keeps_the_equations_over_steps() -> None:
    """The positions' move times the patch is the weight's move, whatever other weights did meanwhile."""
    closed, step = closed_of(), OptimizerPlan(name="sgd", learning_rate=1.0)
    frame = closed.gallery.frame(0)
    keys = [1, 2, 3]
    positions, weights = embeddings(closed.target, closed.target.update([frame] * 3, keys, step))
    patches = closed.target.patches(frame[0])
    assert torch.allclose(positions.T @ patches, weights, atol=1e-3 * float(weights.abs().max()))
    other = OptimizerPlan(name="adam", learning_rate=0.01)
    positions, weights = embeddings(closed.target, closed.target.update([frame] * 3, keys, other))
    assert not torch.allclose(positions.T @ patches, weights, atol=0.1 * float(weights.abs().max()))


def test_steps_views_images_and_hospitals_each_leave_less() -> None:
    closed, some = closed_of(), range(8)
    descent = OptimizerPlan(name="sgd", learning_rate=0.1)
    exact = closed.one_image(some).median
    steps = closed.local_steps(some, 2, descent, augmented=False).median
    views = closed.local_steps(some, 2, descent, augmented=True).median
    adam = closed.local_steps(some, 2, OptimizerPlan(), augmented=False)
    assert exact > 60 > steps > 25 > views
    assert adam.median < adam.baseline + 1
    images = closed.many_images(some)
    assert images.median < images.baseline + 1
    summed = closed.secure_sum(plan_of(), 10)
    assert summed.median < 30
    assert summed.matched is not None
    assert summed.matched >= 7  # a sum of three without noise still tells who is in it
    assert torch.equal(closed.target.start, build_start(closed.target))  # every update begins where the model does


def test_sums_of_something_else_tell_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = closed_of()
    generator = torch.Generator().manual_seed(0)
    numbers = len(closed.target.start)
    monkeypatch.setattr(closed.target, "gradient", lambda views, key: torch.randn(numbers, generator=generator))
    summed = closed.secure_sum(plan_of(), 40)
    assert summed.matched is not None
    assert summed.matched <= 8  # by chance 2 of 40


def build_start(target: Target) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in target.learner.network.parameters() if value.requires_grad])


def test_the_plan_s_noise_leaves_the_average_image() -> None:
    plan, closed, some = plan_of(), closed_of(), range(20)
    declared = mechanism_of(plan, plan.hospitals[0])
    noised, right = closed.noised(declared, some, 10, COINS)
    assert noised.best < 30
    assert noised.median == pytest.approx(noised.baseline, abs=1.0)
    assert right.mean() <= 0.2
    bare, found = closed.noised(replace(declared, noise_multiplier=1e-9), some, 10, COINS)
    assert bare.median > 30
    assert found.mean() > 0.95


def test_mean_releases_have_the_mean_of_the_noise() -> None:
    plan = plan_of(privacy={"clip_quantile": 0.5})
    declared = mechanism_of(plan, plan.hospitals[0])
    blank = torch.zeros(20_000)
    mean = mean_release(declared, blank, 9, COINS, 0)
    assert float(mean.std()) == pytest.approx(declared.noise_std / 3, rel=0.03)


def test_optimisation_rebuilds_without_noise_and_not_with_it() -> None:
    plan = plan_of(model={"trainable": "all"})
    target = small(plan)
    attack = Iterated(target, Gallery.made(target.plan, 20), iterations=200)
    plain = attack.plain([0, 1, 2])
    assert plain.median > plain.baseline + 2
    noised = attack.noised(mechanism_of(plan, plan.hospitals[0]), [0, 1], 10, COINS)
    assert noised.best < noised.baseline


@pytest.mark.parametrize("name", ["mae", "simmim", "simsiam", "byol", "dino", "simclr"])
def test_every_label_free_loss_has_a_gradient_to_descend(name: str) -> None:
    target = small(plan_of(objective={"name": name}, model={"trainable": "all"}))
    gallery = Gallery.made(target.plan, 3)
    exact = target.gradient(gallery.frame(0), 5)

    def distance(guess: torch.Tensor) -> float:
        return 1 - float(torch.nn.functional.cosine_similarity(target.gradient(guess, 5), exact, dim=0))

    start = gallery.average[None]
    found = invert(lambda guess: target.gradient(guess, 5, differentiable=True), exact, start, iterations=25)
    assert distance(gallery.frame(0)) < 1e-5 < distance(found) < distance(start)


def test_ways_are_summed_up() -> None:
    image, where = torch.linspace(0, 1, 16).reshape(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    errors = (0.001, 0.01, 0.1, 0.5)
    way = Way("way", "a way", tuple(Rebuilt(0, image, image + e, image + 0.2, where) for e in errors))
    assert way.best == pytest.approx(60.0, abs=1e-3)
    assert way.median == pytest.approx(30.0, abs=1e-3)
    assert way.baseline == pytest.approx(-20 * math.log10(0.2), abs=1e-3)
    share, low, high = way.better(0.05)
    assert (share, way.shown()[0].psnr) == (0.75, pytest.approx(40.0, abs=1e-3))
    assert 0 < low < 0.75 < high < 1
    assert np.isfinite([one.psnr for one in way.rebuilt]).all()
