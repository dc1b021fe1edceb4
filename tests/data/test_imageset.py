from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privfm.data import ArrayPixels, FilePixels, ImageSet
from privfm.data.pixels import Frame, to_channels
from privfm.data.resizing import resize, resize_nearest

Maker = Callable[..., ImageSet]


def shown(images: ImageSet) -> list[int]:
    """Which images these are, by the value that they are filled with."""
    return (images.load(np.arange(len(images)))[:, 0, 0, 0] * 1000).round().astype(int).tolist()


def test_select_keeps_order_and_drops_patients_that_no_longer_occur(make_images: Maker) -> None:
    images = make_images([0, 1, 1, 2], labels=[0, 1, 1, 0], hospital_of=[0, 0, 0, 1])
    chosen = images.select(np.array([3, 1]))
    assert shown(chosen) == [3, 1]
    assert [chosen.patients[i] for i in chosen.patient_of] == ["p2", "p1"]
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [0, 1]
    assert chosen.hospitals == ("h0", "h1")


def test_select_of_a_selection(make_images: Maker) -> None:
    assert shown(make_images([0, 1, 2, 3]).select(np.array([1, 2, 3])).select(np.array([2, 0]))) == [3, 1]


def test_select_carries_masks_and_boxes(make_images: Maker) -> None:
    class Numbered:
        def load(self, indices: np.ndarray) -> np.ndarray:
            return np.broadcast_to(indices[:, None, None], (len(indices), 4, 4)).astype(np.uint8)

    class Boxed:
        def load(self, indices: np.ndarray) -> list[np.ndarray]:
            return [np.full((1, 4), i, dtype=np.float32) for i in indices]

    images = replace(make_images([0, 1, 2]), masks=Numbered(), boxes=Boxed()).select(np.array([2, 0]))
    assert images.masks is not None
    assert images.masks.load(np.array([0]))[0, 0, 0] == 2
    assert images.boxes is not None
    assert images.boxes.load(np.array([1]))[0].tolist() == [[0, 0, 0, 0]]


def test_images_of_and_by_patient_agree(make_images: Maker) -> None:
    images = make_images([1, 0, 1, 2, 0])
    grouped = images.by_patient()
    assert [g.tolist() for g in grouped] == [[1, 4], [0, 2], [3]]
    assert [images.images_of(i).tolist() for i in range(3)] == [g.tolist() for g in grouped]


def test_image_units_make_every_image_a_patient(make_images: Maker) -> None:
    single = make_images([0, 1, 1]).with_image_units()
    assert single.patients == ("p0#0", "p1#0", "p1#1")
    assert single.patient_of.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patient_of", np.array([0, 1, 5])),
        ("patient_of", np.array([0, 1])),
        ("patient_of", np.array([0, 0, 0])),
        ("labels", np.array([0, -2, 0])),
        ("hospital_of", np.array([0, 0, 1])),
        ("official_test", np.array([True])),
    ],
)
def test_parts_that_do_not_fit_are_refused(make_images: Maker, field: str, value: np.ndarray) -> None:
    images = make_images([0, 1, 1], labels=[0, 0, 0], hospital_of=[0, 0, 0])
    with pytest.raises(ValueError, match="patients" if value.tolist() == [0, 0, 0] else field):
        replace(images, **{field: value})


def test_uint8_and_float_pixels_agree() -> None:
    values = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    both = ArrayPixels(values), ArrayPixels(values.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(both[0].load(np.array([1, 0])), both[1].load(np.array([1, 0])))


class CountingDecoder:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, frame: Frame, side: int) -> np.ndarray:
        self.calls += 1
        return np.full((3, 6, 10), frame.index / 10, dtype=np.float32)


def file_pixels(tmp_path, cache_bytes: int) -> tuple[FilePixels, CountingDecoder]:
    decode = CountingDecoder()
    frames = tuple(Frame(tmp_path / "a.tif", i) for i in range(4))
    return FilePixels(frames, decode, image_size=4, channels=1, cache_bytes=cache_bytes), decode


def test_files_are_decoded_once_while_the_cache_lasts(tmp_path) -> None:
    pixels, decode = file_pixels(tmp_path, cache_bytes=2 * 4 * 4 * 4)
    for _ in range(3):
        loaded = pixels.load(np.arange(4))
    np.testing.assert_allclose(loaded[:, 0, 0, 0], [0, 0.1, 0.2, 0.3], atol=1e-6)
    assert decode.calls == 2 + 3 * 2


def test_read_all_touches_every_file(tmp_path) -> None:
    pixels, decode = file_pixels(tmp_path, cache_bytes=10**6)
    pixels.read_all()
    pixels.load(np.arange(4))
    assert decode.calls == 4


def test_what_a_caller_does_to_a_batch_does_not_reach_the_cache(tmp_path) -> None:
    pixels, _ = file_pixels(tmp_path, cache_bytes=10**6)
    pixels.load(np.arange(4))[:] = 9
    assert pixels.load(np.arange(4)).max() < 1


def test_resize_keeps_constants_and_averages_when_shrinking() -> None:
    np.testing.assert_allclose(resize(np.full((2, 7, 9), 0.3, np.float32), 3, 5), 0.3, atol=1e-6)
    checks = (np.indices((64, 64)).sum(axis=0) % 2).astype(np.float32)
    np.testing.assert_allclose(resize(checks, 8, 8)[1:-1, 1:-1], 0.5, atol=1e-3)


def test_resize_agrees_with_pillow() -> None:
    from PIL import Image

    source = np.random.default_rng(0).random((40, 50), dtype=np.float32)
    ours = resize(source, 16, 70)
    theirs = np.asarray(Image.fromarray(source).resize((70, 16), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_nearest_invents_no_class() -> None:
    mask = np.zeros((10, 10), dtype=np.uint8)
    mask[3:7, 3:7] = 4
    small = resize_nearest(mask, 5, 5)
    assert set(np.unique(small)) == {0, 4}
    assert small[2, 2] == 4


def test_luminance_weighs_green_most() -> None:
    red, green, blue = (to_channels(np.eye(3, dtype=np.float32)[i][:, None, None], 1).item() for i in range(3))
    assert green > red > blue
    assert red + green + blue == pytest.approx(1.0)


def test_channels_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match="channels=3 from 2"):
        to_channels(np.zeros((2, 4, 4), np.float32), 3)


def test_importing_the_package_is_light() -> None:
    code = "import sys, privfm.data; print([m for m in ('torch', 'skimage', 'sklearn', 'pydicom') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
