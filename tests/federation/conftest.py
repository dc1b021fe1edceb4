from collections.abc import Callable
from typing import Any

import pytest
import torch

from privfm.dp.coins import InjectedCoins
from privfm.federation.records import RunResult
from privfm.federation.training import train
from privfm.plan import Plan, parse_plan

TINY: dict[str, Any] = {
    "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3, "min_patients": 4},
    "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch", "trainable": "norm-bias"},
    "privacy": {"images_per_unit": 2, "views": 1},
    "federation": {"rounds": 2, "local_steps": 2, "retry_rounds": 2},
    "performance": {"device": "cpu", "threads": 1},
}


def plan_with(**sections: dict[str, Any]) -> Plan:
    """The tiny plan with some keys of some sections changed."""
    return parse_plan({name: TINY.get(name, {}) | sections.get(name, {}) for name in {*TINY, *sections}})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny_plan() -> Callable[..., Plan]:
    return plan_with


def injected(hospital: str) -> InjectedCoins:
    return InjectedCoins(f"test {hospital}".encode())


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A private run of the tiny plan with the probe on."""
    torch.set_num_threads(1)
    return train(plan_with(), tmp_path_factory.mktemp("runs") / "run")
