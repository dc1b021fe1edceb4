"""What follows the weights follows released ones, and is the same at every hospital."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from privfm.errors import PlanError
from privfm.federation.building import comparison_images
from privfm.federation.initialisation import initialise
from privfm.federation.local_training import train_locally
from privfm.federation.network import backbone_spec, build_learner, trained, write_trained
from privfm.federation.observer import Observer
from privfm.federation.optimizers import NoisedGradient
from privfm.federation.training import train
from privfm.models.export import save_backbone
from privfm.objectives import Network
from privfm.plan import OptimizerPlan, Plan

SMALL: dict[str, dict[str, Any]] = {
    "mae": {},
    "simmim": {},
    "simsiam": {"public": 4, "width": 8, "hidden": 16},
    "byol": {"public": 4, "width": 8, "hidden": 16},
    "dino": {"public": 4, "width": 8, "hidden": 16, "prototypes": 8},
    "simclr": {"negatives": 4, "width": 8, "hidden": 16},
}
FOLLOWING = ("simsiam", "byol", "dino", "simclr")


def buffers(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.named_buffers() if name != "public"}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def plan_of(name: str, tiny_plan: Callable[..., Plan], **sections: Any) -> Plan:
    return tiny_plan(objective={"name": name, **SMALL[name]}, **sections)


@pytest.mark.parametrize("name", FOLLOWING)
def test_steps_of_a_hospital_leave_the_teacher_where_the_global_model_put_it(
    name: str, tiny_plan: Callable[..., Plan]
) -> None:
    network, objective, _ = build_learner(plan_of(name, tiny_plan))
    views = torch.randn(2, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    first, seen = trained(network), []

    def gradient(step: int) -> NoisedGradient:
        seen.append(buffers(network))
        loss = objective.unit_losses(network, views, [np.random.default_rng([step, unit]) for unit in range(2)])
        parts = torch.autograd.grad(loss.sum(), [value for value in network.parameters() if value.requires_grad])
        return NoisedGradient(torch.cat([part.flatten() for part in parts]), 0.0)

    start = first + 0.1
    update = train_locally(network, start, OptimizerPlan(name="sgd", learning_rate=0.1), 3, gradient)
    assert update.abs().max() > 0
    write_trained(network, start)
    assert all(same(each, buffers(network)) for each in seen)
    write_trained(network, first)
    assert not same(seen[0], buffers(network))
    write_trained(network, start, refresh=False)
    assert not same(seen[0], buffers(network))


@pytest.mark.parametrize("name", FOLLOWING)
def test_all_hospitals_hold_the_same(name: str, tiny_plan: Callable[..., Plan]) -> None:
    plan = plan_of(name, tiny_plan)
    here, there = build_learner(plan).network, build_learner(plan).network
    other = build_learner(plan.model_copy(update={"seed": 5})).network
    assert torch.equal(here.get_buffer("public"), there.get_buffer("public"))
    assert not torch.equal(here.get_buffer("public"), other.get_buffer("public"))
    assert same(buffers(here), buffers(there))
    there.load_state_dict(other.state_dict())
    assert not same(buffers(here), buffers(there))
    there.load_state_dict(here.state_dict())
    assert same(buffers(here), buffers(there))


@pytest.mark.parametrize("name", FOLLOWING)
def test_nothing_that_follows_is_stored(name: str, tiny_plan: Callable[..., Plan]) -> None:
    network = build_learner(plan_of(name, tiny_plan)).network
    parameters = {key for key, _ in network.named_parameters()}
    assert set(network.state_dict()) == parameters | {f"backbone.{key}" for key in network.backbone.state_dict()}


def test_images_to_compare_with_are_nobody_s_and_standardised(tiny_plan: Callable[..., Plan]) -> None:
    spec = backbone_spec(tiny_plan())
    images = comparison_images(spec, 5, 0)
    assert images is not None
    assert images.shape == (5, 1, 16, 16)
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), torch.zeros(5), atol=1e-5, rtol=0)
    assert comparison_images(spec, 0, 0) is None


@pytest.mark.parametrize(("name", "count"), [("mae", 0), ("simclr", 4), ("dino", 4)])
def test_the_statement_will_tell_what_is_compared_with(name: str, count: int, tiny_plan: Callable[..., Plan]) -> None:
    told = initialise(plan_of(name, tiny_plan), Observer()).public_data
    sentence = f"objective {name} compares with 4 procedural images that a program drew (seed 0; nobody's data)"
    assert told == ((sentence,) if count else ())


def test_a_start_from_a_file_is_followed(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    learner = build_learner(plan_of("byol", tiny_plan))
    with torch.no_grad():
        for value in learner.network.backbone.parameters():
            value += 0.1
    save_backbone(learner.network.backbone, tmp_path)
    file = str(tmp_path / "model.safetensors")
    plan = plan_of("byol", tiny_plan, model={"init": file})
    network = initialise(plan, Observer()).learner.network
    before = buffers(network)
    network.refresh()
    assert same(before, buffers(network))
    assert not same(before, buffers(build_learner(plan).network))


@pytest.mark.parametrize(
    "name", [name if name in ("byol", "simclr") else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
def test_a_run_with_each_objective(name: str, tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    result = train(plan_of(name, tiny_plan, federation={"rounds": 1}, evaluation={"probe": False}), tmp_path / "run")
    assert result.private
    assert result.public_loss.trained != result.public_loss.start


def test_options_of_another_objective_are_refused(tiny_plan: Callable[..., Plan]) -> None:
    with pytest.raises(PlanError, match=r"objective simclr: takes no mask_ratio; it takes .*negatives"):
        build_learner(tiny_plan(objective={"name": "simclr", "mask_ratio": 0.5}))
