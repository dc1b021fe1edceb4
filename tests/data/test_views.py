from __future__ import annotations

import numpy as np
import pytest
import torch

from privfm.data.views import Augmentation, make_unit_views, make_views, standardise

FULL = Augmentation(min_area=0.3, vertical_flip=True, brightness=0.4)


def images(units: int = 4, per_unit: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand((units, per_unit, 1, size, size), generator=torch.Generator().manual_seed(0))


def rngs(units: int) -> list[np.random.Generator]:
    return [np.random.default_rng([7, unit]) for unit in range(units)]


def test_a_batch_of_units_gives_what_each_unit_gives_alone() -> None:
    together = make_unit_views(images(), 3, rngs(4), FULL)
    for unit, rng in enumerate(rngs(4)):
        assert torch.equal(together[unit], make_views(images()[unit], 3, rng, FULL))


def test_moving_one_unit_leaves_the_others_views_bit_equal() -> None:
    moved = images()
    moved[1] += 100.0
    before, after = make_unit_views(images(), 3, rngs(4), FULL), make_unit_views(moved, 3, rngs(4), FULL)
    others = [0, 2, 3]
    assert torch.equal(standardise(before[others]), standardise(after[others]))
    assert not torch.equal(before[1], after[1])


def test_views_of_an_image_are_side_by_side_and_differ() -> None:
    pair = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    views = make_views(pair, 3, np.random.default_rng(0))
    assert views.mean(dim=(1, 2, 3)).round().tolist() == [0, 0, 0, 1, 1, 1]
    one = make_views(images()[0, :1], 2, np.random.default_rng(0))
    assert not torch.equal(one[0], one[1])


def test_whole_area_without_flip_is_the_image_itself() -> None:
    still = Augmentation(min_area=1.0, max_stretch=1.0, horizontal_flip=False)
    source = images()[0]
    torch.testing.assert_close(make_views(source, 1, np.random.default_rng(0), still), source, atol=1e-5, rtol=0)


def test_flips_mirror_about_half_of_the_views() -> None:
    ramp = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
    flip = Augmentation(min_area=1.0, max_stretch=1.0)
    views = make_views(ramp, 400, np.random.default_rng(0), flip)
    mirrored = (views[:, 0, 0, 0] > 0.5).sum().item()
    assert 150 < mirrored < 250
    upright = Augmentation(min_area=1.0, max_stretch=1.0, horizontal_flip=False, vertical_flip=True)
    assert (make_views(ramp, 50, np.random.default_rng(0), upright)[:, 0, 0, 0] < 0.5).all()


def test_crops_stay_inside_the_image() -> None:
    x = torch.linspace(-1, 1, 33)[None, None, None].expand(1, 1, 33, 33)
    views = make_views(x, 200, np.random.default_rng(0), Augmentation(min_area=0.2, max_stretch=2.0))
    spans = views.amax(dim=(1, 2, 3)) - views.amin(dim=(1, 2, 3))
    assert spans.min() > 0.4
    assert spans.max() <= 2.0


def test_brightness_survives_standardisation() -> None:
    still = Augmentation(min_area=1.0, max_stretch=1.0, horizontal_flip=False, brightness=0.5)
    views = standardise(make_views(images()[0, :1], 2, np.random.default_rng(0), still))
    assert (views[0] - views[1]).abs().max() > 0.01


def test_no_units_no_views() -> None:
    assert make_unit_views(images()[:0], 3, []).shape == (0, 6, 1, 16, 16)


def test_standardise_has_unit_variance_and_keeps_blank_images_at_zero() -> None:
    batch = torch.cat([torch.rand(3, 1, 8, 8) * 0.02, torch.full((1, 1, 8, 8), 0.7)])
    out = standardise(batch)
    torch.testing.assert_close(out.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.square().mean(dim=(1, 2, 3)), torch.tensor([1.0, 1.0, 1.0, 0.0]), atol=1e-4, rtol=0)
    assert out[3].abs().max() == 0


def test_standardise_does_not_look_across_images() -> None:
    batch = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(standardise(batch)[2], standardise(batch[2]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("wrong", [{"min_area": 0.0}, {"max_stretch": 0.9}, {"brightness": -1.0}])
def test_augmentation_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)


def test_one_generator_a_unit_is_needed() -> None:
    with pytest.raises(ValueError, match="rngs=3"):
        make_unit_views(images(), 1, rngs(3))
