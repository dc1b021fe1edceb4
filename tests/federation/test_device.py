"""Hospitals compute on the device that was picked; micro-batches fit the memory set aside, whatever the backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from other_device import ELSEWHERE, Elsewhere, other_device
from torch import Tensor

from privfm.data import load_images
from privfm.dp.clipping import ClippingEngine
from privfm.dp.coins import InjectedCoins
from privfm.errors import PlanError
from privfm.federation import device, simulation, unit_batches
from privfm.federation.device import micro_batch_of, pick_device, units_at_a_time
from privfm.federation.network import build_learner
from privfm.federation.planning import complete_plan
from privfm.federation.training import train
from privfm.federation.unit_batches import UnitSource
from privfm.ids import HospitalId
from privfm.models import read_tensors
from privfm.plan import Plan

CPU = torch.device("cpu")


def units(plan: Plan) -> int:
    return units_at_a_time(plan, build_learner(plan), CPU)


def test_as_many_units_as_fit(tiny_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(**privacy: Any) -> Plan:
        return tiny_plan(privacy={"images_per_unit": 2, "views": 1, **privacy})

    monkeypatch.setattr(device, "ACTIVATION_BYTES", 1 << 24)
    few, many = units(plan(views=16)), units(plan(views=4))
    assert 1 < few < many
    assert few == pytest.approx(many / 4, rel=0.1, abs=1)
    monkeypatch.setattr(device, "ACTIVATION_BYTES", 1 << 25)
    assert units(plan(views=16)) == pytest.approx(2 * few, rel=0.1, abs=1)
    monkeypatch.setattr(device, "ACTIVATION_BYTES", 1)
    assert units(plan()) == 1


def test_the_plan_s_own_number_goes_first(tiny_plan: Callable[..., Plan]) -> None:
    assert units(tiny_plan(performance={"device": "cpu", "threads": 1, "micro_batch": 7})) == 7


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_an_error_in_a_line() -> None:
    with pytest.raises(PlanError, match="--device cuda:3: torch sees 0 GPUs here; use auto or cpu"):
        pick_device("cuda:3")
    assert pick_device("auto") == CPU


def test_batches_have_one_public_size(tiny_plan: Callable[..., Plan]) -> None:
    """Arithmetic may depend on how many units are computed together, and that must not depend on who was drawn."""
    images = load_images("phantom", image_size=16, patients=9)
    source = UnitSource(images, images_per_unit=2, views=1, micro_batch=4, device=CPU)

    def drawn(count: int) -> list[tuple[int, int]]:
        batches = source.batches(np.arange(count), lambda unit: np.random.default_rng(0))
        return [(len(batch.views), batch.count) for batch in batches]

    assert drawn(3) == [(4, 3)]
    assert drawn(9) == [(4, 4), (4, 4), (4, 1)]
    assert drawn(0) == []
    (batch,) = source.batches(np.arange(3), lambda unit: np.random.default_rng(0))
    assert not batch.views[3].any()
    assert len(batch.rngs) == 4


def test_views_are_made_of_one_public_number_of_units_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean over one large image alone is added up in another order than over two: it shows in the last bit."""
    images, sizes = load_images("phantom", image_size=16, patients=9), []
    made, scaled = unit_batches.make_unit_views, unit_batches.standardise

    def make(pixels: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(pixels))
        return made(pixels, *rest)

    def standardise(views: Tensor) -> Tensor:
        sizes.append(len(views))
        return scaled(views)

    monkeypatch.setattr(unit_batches, "make_unit_views", make)
    monkeypatch.setattr(unit_batches, "standardise", standardise)
    source = UnitSource(images, images_per_unit=1, views=1, micro_batch=4, device=CPU)
    assert [batch.count for batch in source.batches(np.arange(5), lambda unit: np.random.default_rng(0))] == [4, 1]
    assert set(sizes) == {4}


def test_a_micro_batch_is_a_quarter_of_what_a_step_expects(tiny_plan: Callable[..., Plan]) -> None:
    plan = complete_plan(
        tiny_plan(), {HospitalId(name): units for name, units in (("a", 60), ("b", 5), ("c", 900))}, 1.0
    )
    assert [micro_batch_of(plan, hospital, 64) for hospital in plan.hospitals] == [8, 1, 64]


RUNS: dict[str, dict[str, Any]] = {
    "mae": {"model": {"trainable": "all"}, "privacy": {"clip_quantile": 0.5}},
    "simmim": {"model": {"trainable": "lora"}},
    "simsiam": {"objective": {"public": 4, "width": 8, "hidden": 16}, "model": {"trainable": "last-1"}},
    "byol": {"objective": {"public": 4, "width": 8, "hidden": 16}, "evaluation": {"local_loss": True, "probe": False}},
    "dino": {"objective": {"public": 4, "width": 8, "hidden": 16, "prototypes": 8}, "optimizer": {"name": "sgd"}},
    "simclr": {"objective": {"negatives": 4, "width": 8, "hidden": 16}},
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("simmim", "simsiam", "simclr")]


@pytest.mark.parametrize("name", ["mae", "byol", "dino", *SLOW])
def test_a_run_on_another_device_is_the_same(
    name: str, tiny_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a step is left on the CPU by mistake: the pretended device refuses that, as a GPU would."""
    sections: dict[str, Any] = {"evaluation": {"probe": False}, **RUNS[name]}
    sections["objective"] = {"name": name, **sections.get("objective", {})}
    plan = tiny_plan(**sections, federation={"rounds": 1, "local_steps": 2, "retry_rounds": 1})
    where, add = [], ClippingEngine.add

    def watched(engine: ClippingEngine, *args: Any) -> None:
        where.append(type(engine._parameters[0].data))
        add(engine, *args)

    monkeypatch.setattr(ClippingEngine, "add", watched)

    def model(out: Path) -> dict[str, Tensor]:
        train(plan, out, coins_of=lambda hospital: InjectedCoins(hospital.encode()))
        return read_tensors(out / "model.safetensors")

    here, computed_here = model(tmp_path / "here"), len(where)
    monkeypatch.setattr(simulation, "pick_device", lambda device_name: ELSEWHERE)
    with other_device():
        there = model(tmp_path / "there")
    assert set(where[:computed_here]) == {Tensor}
    assert set(where[computed_here:]) == {Elsewhere}
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)  # two strides may be added up in another order
