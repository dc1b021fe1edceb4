from __future__ import annotations

import numpy as np
import pytest

from privfm.data import hold_out, load_images, load_phantom, patient_classes
from privfm.data.keyed import KeyedDraws, join_keys


def test_it_says_that_it_is_synthetic() -> None:
    images = load_phantom(patients=3)
    assert images.synthetic
    assert images.public
    assert images.name == "phantom"


@pytest.mark.parametrize(("size", "channels", "patients"), [(16, 1, 1), (32, 3, 7), (61, 1, 40)])
def test_any_size_and_number_of_patients(size: int, channels: int, patients: int) -> None:
    images = load_phantom(size, channels, patients=patients)
    batch = images.load(np.arange(3))
    assert len(images.patients) == patients
    assert batch.shape == (3, channels, size, size)
    assert batch.dtype == np.float32
    assert np.isfinite(batch).all()
    assert 0.0 <= batch.min() < batch.max() <= 1.0
    per_patient = np.bincount(images.patient_of)
    assert 6 <= per_patient.min() <= per_patient.max() <= 18


def test_a_frame_depends_on_seed_patient_and_number_alone() -> None:
    few, many = load_phantom(24, 3, patients=5, seed=4), load_phantom(24, 3, patients=50, seed=4)
    indices = np.array([30, 2, 17])
    np.testing.assert_array_equal(few.load(indices), many.load(indices))
    np.testing.assert_array_equal(few.load(indices)[1], few.load(np.array([2]))[0])
    assert not np.allclose(few.load(indices), load_phantom(24, 3, patients=5, seed=5).load(indices), atol=0.05)


def test_chunks_do_not_show() -> None:
    images = load_phantom(128, 1, patients=3)
    np.testing.assert_array_equal(images.load(np.arange(12))[9:], images.load(np.arange(9, 12)))


def test_frames_of_a_patient_are_more_alike_than_frames_of_two() -> None:
    images = load_phantom(32, 3, patients=60)
    hue = images.load(np.arange(len(images))).mean(axis=(2, 3))
    hue = hue[:, 1:] / hue[:, :1]
    within = np.mean([hue[group].std(axis=0) for group in images.by_patient()])
    between = np.std([hue[group].mean(axis=0) for group in images.by_patient()], axis=0).mean()
    assert between > 2 * within


def test_only_polyp_frames_have_masks_and_boxes_and_they_agree() -> None:
    images = load_phantom(48, 1, patients=30, seed=2)
    everything = np.arange(len(images))
    assert images.masks is not None
    assert images.boxes is not None
    assert images.labels is not None
    masks, boxes = images.masks.load(everything), images.boxes.load(everything)
    polyp = images.labels == images.class_names.index("polyp")
    np.testing.assert_array_equal(masks.any(axis=(1, 2)), polyp)
    for mask, box in zip(masks, boxes, strict=True):
        assert len(box) == int(mask.any())
        for left, top, right, bottom in box.astype(int):
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert mask[top, left:right].any()
            assert mask[top:bottom, right - 1].any()


def test_a_polyp_changes_the_pixels_under_its_mask() -> None:
    from privfm.data.endoscopy import NORMAL, POLYP, draw_frames

    keys = np.arange(20, dtype=np.uint64)
    with_polyp = draw_frames(keys, keys, np.full(20, POLYP), 32)
    without = draw_frames(keys, keys, np.full(20, NORMAL), 32)
    change = np.abs(with_polyp.colour - without.colour).mean(axis=1)
    assert change[with_polyp.polyp].mean() > 5 * change[~with_polyp.polyp].mean()
    assert not without.polyp.any()


def test_every_class_has_patients_to_hold_out() -> None:
    train, test = hold_out(load_images("phantom", image_size=16, patients=40), 0.25, seed=0)
    assert set(patient_classes(train)) == set(patient_classes(test)) == {0, 1, 2}


def test_no_patients_is_refused() -> None:
    with pytest.raises(ValueError, match="patients=0"):
        load_phantom(patients=0)


def test_keyed_numbers_are_uniform_and_uncorrelated() -> None:
    draws = KeyedDraws(join_keys(np.full(4000, 9, np.uint64), np.arange(4000, dtype=np.uint64))).uniform(0.0, 1.0, 4)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert np.abs(counts - 800).max() < 5 * np.sqrt(800)
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.08
    assert np.abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.08


def test_a_stream_advances() -> None:
    draws = KeyedDraws(np.arange(3, dtype=np.uint64))
    assert not np.array_equal(draws.uniform(0.0, 1.0), draws.uniform(0.0, 1.0))
