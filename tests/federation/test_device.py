"""Micro-batches fit the memory set aside, whatever the backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from privfm.errors import PlanError
from privfm.federation import device
from privfm.federation.device import pick_device, units_at_a_time
from privfm.federation.network import build_learner
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
