from __future__ import annotations

import numpy as np
import pytest
import torch

from privfm.objectives.glances import Glances


def rngs(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


def views(units: int, count: int) -> torch.Tensor:
    return torch.randn(units, count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_two_glances_of_a_view_lie_side_by_side_and_differ() -> None:
    slopes = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0, 1.0])  # crops and mirror images keep which end is bright
    ramps = slopes[:, None, None] * torch.linspace(-1, 1, 16)[None, :, None].expand(6, 16, 16)
    pairs = Glances().draw(ramps.reshape(2, 3, 1, 16, 16), rngs(0, 1)).reshape(6, 2, 16, 16)
    for pair, slope in zip(pairs, slopes, strict=True):
        assert all(slope * (glance[-1] - glance[0]).mean() > 1 for glance in pair)
    cropped = Glances().draw(views(2, 3), rngs(0, 1)).reshape(6, 2, -1)
    assert (cropped[:, 0] - cropped[:, 1]).abs().mean(dim=1).min() > 0.1


def test_a_unit_s_glances_come_from_its_own_generator() -> None:
    both = Glances().draw(views(2, 3), rngs(5, 6))
    assert torch.equal(both[6:], Glances().draw(views(2, 3)[1:], rngs(6)))
    moved = Glances().draw(views(2, 3), rngs(7, 6))
    assert torch.equal(both[6:], moved[6:])
    assert not torch.equal(both[:6], moved[:6])


def test_glances_are_standardised_and_blank_views_stay_finite() -> None:
    glances = Glances(tone=1.0).draw(100 * views(1, 2), rngs(0))
    torch.testing.assert_close(glances.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(glances.std(dim=(1, 2, 3), correction=0), torch.ones(4), atol=1e-2, rtol=0)
    assert Glances().draw(torch.zeros(1, 1, 1, 8, 8), rngs(0)).abs().max() < 1e-5


@pytest.mark.parametrize(("key", "value"), [("min_area", 0.0), ("min_area", 1.5), ("tone", -0.1), ("tone", 1.1)])
def test_numbers_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key}={value}"):
        Glances(**{key: value})
