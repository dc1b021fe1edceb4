from collections.abc import Callable
from pathlib import Path

import pytest

from privfm.errors import PlanError
from privfm.federation.checking import check_plan
from privfm.federation.training import train
from privfm.plan import Plan


def test_an_adaptive_clip_norm_adds_noise_to_the_forecast(tiny_plan: Callable[..., Plan]) -> None:
    images = {"images_per_unit": 2, "views": 1}
    fixed, adapted = (check_plan(tiny_plan(privacy=images | extra)).hospitals for extra in ({}, {"clip_quantile": 0.5}))
    for before, after in zip(fixed, adapted, strict=True):
        assert after.noise_multiplier == before.noise_multiplier
        ratio = after.forecast.noise_to_signal / before.forecast.noise_to_signal
        assert ratio == pytest.approx(1 / (1 - 1 / 4) ** 0.5)  # few units: the count has as much noise as it may


def test_patients_at_several_hospitals_are_composed_beforehand(tiny_plan: Callable[..., Plan]) -> None:
    data = {"images_per_unit": 2, "views": 1}
    alone = check_plan(tiny_plan(privacy=data))
    both = check_plan(tiny_plan(privacy=data, data={"max_hospitals_per_patient": 2}))
    assert alone.composed is None
    assert both.composed is not None
    assert both.composed > 1.2 * max(row.epsilon_with_retries for row in both.hospitals)


@pytest.mark.parametrize("ask", [check_plan, lambda plan: train(plan, Path("never-made"))], ids=["check", "train"])
def test_an_option_that_the_objective_does_not_take_is_told_before_images_are_read(
    ask: Callable[[Plan], object], tiny_plan: Callable[..., Plan]
) -> None:
    plan = tiny_plan(objective={"name": "mae", "tone": 0.5}, data={"source": "no-such-folder"})
    with pytest.raises(PlanError, match="objective mae: takes no tone"):
        ask(plan)
