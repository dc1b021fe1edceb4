"""What a plan says of clipping, noise, optimiser and precision reaches the hospitals, and is charged as before."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from privfm.dp.events import total_steps
from privfm.dp.ledger import Ledger
from privfm.federation.directory import RunDirectory
from privfm.federation.planning import mechanism_of, update_weight
from privfm.federation.stating import state_run
from privfm.federation.training import train
from privfm.plan import Plan

OPTIONS: dict[str, dict[str, Any]] = {
    "adaptive clip norm": {"privacy": {"clip_quantile": 0.37, "images_per_unit": 2, "views": 1}},
    "noise of four draws": {"privacy": {"noise_terms": 4, "images_per_unit": 2, "views": 1}},
    "bias-corrected adam": {"optimizer": {"name": "adam-bc", "learning_rate": 0.001}},
    "bfloat16": {"performance": {"device": "cpu", "threads": 1, "precision": "bfloat16"}},
    "the hospitals' own loss": {"evaluation": {"local_loss": True, "probe": False}},
    "adapters": {"model": {"trainable": "lora", "lora_rank": 2, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}},
    "everything trains": {"model": {"trainable": "all", "patch_size": 4, "width": 16, "depth": 1, "heads": 2}},
}


@pytest.fixture(params=OPTIONS)
def run(request: pytest.FixtureRequest, tiny_plan: Callable[..., Plan], tmp_path: Path) -> RunDirectory:
    train(tiny_plan(**{"evaluation": {"probe": False}, **OPTIONS[request.param]}), tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_a_run_is_charged_what_it_declared_and_its_model_moves(run: RunDirectory) -> None:
    plan, facts = run.plan, run.facts()
    for hospital in plan.hospitals:
        with Ledger.open(run.ledger(hospital.id), hospital.id, read_only=True) as ledger:
            events = ledger.events(facts.run)
        assert total_steps(events) == plan.planned_steps
        assert {event.noise_multiplier for event in events} == {hospital.noise_multiplier}
    model = run.load_checkpoint().model
    assert torch.isfinite(model).all()


def test_an_adapted_norm_stays_at_the_hospital_and_is_kept(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    train(tiny_plan(**OPTIONS["adaptive clip norm"], evaluation={"probe": False}), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    for hospital in run.plan.hospitals:
        kept = json.loads((run.own(hospital.id) / "clip-norm.json").read_text())["clip_norm"]
        assert kept != run.plan.privacy.clip_norm
        assert (run.own(hospital.id) / "clip-norm.json").stat().st_mode & 0o077 == 0
        mechanism = mechanism_of(run.plan, hospital)
        assert mechanism.gradient_noise_multiplier > mechanism.noise_multiplier == hospital.noise_multiplier
    said = state_run(run).contribution_cap
    assert "follows the 37% quantile" in said
    assert "noised count" in said


def test_losses_are_shown_when_asked_for_and_only_then(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    asked = tiny_plan(evaluation={"local_loss": True, "probe": False})
    train(asked, tmp_path / "asked")
    run = RunDirectory(tmp_path / "asked")
    bound = run.plan.evaluation.loss_bound
    assert bound is not None
    assert run.plan.planned_steps == run.plan.federation.rounds * (run.plan.federation.local_steps + 1)
    for record in run.records():
        assert record.local_loss is not None
        value, std = record.local_loss
        assert -bound < value < 2 * bound
        parts = [
            update_weight(run.plan, each) * mechanism_of(run.plan, each).mean_std(bound) for each in run.plan.hospitals
        ]
        assert std == pytest.approx(math.hypot(*parts) / len(parts))
    assert any("mean loss of each hospital" in release for release in state_run(run).releases)
    train(tiny_plan(evaluation={"probe": False}), tmp_path / "silent")
    assert all(record.local_loss is None for record in RunDirectory(tmp_path / "silent").records())
