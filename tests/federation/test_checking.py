from collections.abc import Callable

import pytest

from privfm.federation.checking import check_plan
from privfm.plan import Plan


def test_an_adaptive_clip_norm_adds_noise_to_the_forecast(tiny_plan: Callable[..., Plan]) -> None:
    images = {"images_per_unit": 2, "views": 1}
    fixed, adapted = (check_plan(tiny_plan(privacy=images | extra)).hospitals for extra in ({}, {"clip_quantile": 0.5}))
    for before, after in zip(fixed, adapted, strict=True):
        assert after.noise_multiplier == before.noise_multiplier
        ratio = after.forecast.noise_to_signal / before.forecast.noise_to_signal
        assert ratio == pytest.approx(1 / (1 - 1 / 4) ** 0.5)  # few units: the count has as much noise as it may
