"""The second guarantee is given where it is proved, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privfm.dp.accounting import epsilon
from privfm.dp.statement import PrivacyStatement
from privfm.dp.statement_text import sections_of, text_of
from privfm.federation.directory import RunDirectory
from privfm.federation.planning import mechanism_of
from privfm.federation.stating import state_run
from privfm.federation.summed import sum_guarantee
from privfm.federation.training import train
from privfm.plan import Plan

DESCENT: dict[str, dict[str, Any]] = {
    "federation": {"rounds": 2, "local_steps": 1, "retry_rounds": 0},
    "optimizer": {"name": "sgd", "learning_rate": 0.05},
    "evaluation": {"probe": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("descent")


@pytest.fixture
def run(folder: Path, tiny_plan: Callable[..., Plan]) -> RunDirectory:
    if not (folder / "run").exists():
        train(tiny_plan(**DESCENT), folder / "run")
    return RunDirectory(folder / "run")


def guarantee_of(run: RunDirectory, **changed: Any) -> Any:
    given = {"plan": run.plan, "records": run.records(), "rounds_charged": dict.fromkeys(names(run), 2)} | changed
    return sum_guarantee(**given, parameters=run.load_checkpoint().model.numel())


def names(run: RunDirectory) -> list[str]:
    return [hospital.id for hospital in run.plan.hospitals]


def test_a_sum_has_everybody_s_noise(run: RunDirectory) -> None:
    guarantee = guarantee_of(run)
    delta = run.plan.privacy.delta
    own = min(epsilon([mechanism_of(run.plan, each).event(2)], delta) for each in run.plan.hospitals)
    assert 0 < guarantee.epsilon < 0.9 * own
    assert guarantee.delta == delta
    alone = [replace(record, survivors=(names(run)[0],)) for record in run.records()]
    assert guarantee_of(run, records=alone).epsilon > 0.99 * own


@pytest.mark.parametrize(
    "change",
    [
        {"federation": {"local_steps": 2}},
        {"optimizer": {"name": "adam"}},
        {"optimizer": {"weight_decay": 0.1}},
        {"privacy": {"clip_quantile": 0.5}},
        {"evaluation": {"local_loss": True, "loss_bound": 1.0}},
        {"secagg": {"clamp": 1e-3}},
    ],
)
def test_what_is_not_proved_is_not_said(run: RunDirectory, change: dict[str, dict[str, Any]]) -> None:
    sections = {name: getattr(run.plan, name).model_copy(update=values) for name, values in change.items()}
    assert guarantee_of(run, plan=run.plan.model_copy(update=sections)) is None


def test_a_round_computed_twice_is_a_sum_that_nobody_recorded(run: RunDirectory) -> None:
    assert guarantee_of(run, rounds_charged={**dict.fromkeys(names(run), 2), names(run)[0]: 3}) is None


def test_the_statement_says_it_of_a_private_run(run: RunDirectory) -> None:
    stated = state_run(run)
    assert stated.final_model == guarantee_of(run)
    assert (
        stated.final_model == PrivacyStatement.model_validate_json((run.root / "privacy.json").read_text()).final_model
    )
    assert "For users of the final model only" in text_of(sections_of(stated))
