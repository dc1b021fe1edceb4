from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from privfm.data import hold_out, load_images
from privfm.data import medmnist as medmnist_module
from privfm.errors import DataError


def arrays(channels: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        made[f"{split}_images"] = rng.integers(256, size=(count, 28, 28, *channels), dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    return made


def save(path: Path, **changes: np.ndarray | None) -> Path:
    members = {key: value for key, value in (arrays() | changes).items() if value is not None}
    np.savez_compressed(path / "set.npz", **members)
    return path / "set.npz"


def refused(path: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=pattern) as caught:
        load_images(str(path), image_size=28, unit="image")
    assert "\n" not in str(caught.value)


def test_grey_images_with_their_official_test_split(tmp_path: Path) -> None:
    images = load_images(str(save(tmp_path)), image_size=28, unit="image")
    assert len(images) == len(images.patients) == 11
    assert images.class_names == ("0", "1")
    np.testing.assert_allclose(images.load(np.array([8]))[0, 0], arrays()["test_images"][0] / 255, atol=1e-6)
    train, test = hold_out(images, 0.5, seed=0)
    assert test.patients == ("test-0", "test-1", "test-2")
    assert len(train) == 8


def test_colour_images_at_another_size(tmp_path: Path) -> None:
    path = save(tmp_path, **arrays((3,)))
    assert load_images(str(path), image_size=32, channels=1, unit="image").load(np.array([0])).shape == (1, 1, 32, 32)
    assert load_images(str(path), image_size=16, channels=3, unit="image").load(np.array([0])).shape == (1, 3, 16, 16)


def test_patients_are_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not say which images are of one patient; pass `--unit image`"):
        load_images(str(save(tmp_path)), image_size=28)


def test_several_labels_an_image_count_as_none(tmp_path: Path) -> None:
    many = {f"{split}_labels": np.zeros((n, 14), np.uint8) for split, n in (("train", 6), ("val", 2), ("test", 3))}
    assert load_images(str(save(tmp_path, **many)), image_size=28, unit="image").labels is None


def test_other_layouts(tmp_path: Path) -> None:
    refused(save(tmp_path, weights=np.zeros(3)), "found weights")
    refused(save(tmp_path, train_images=None), "train_images is missing")
    refused(save(tmp_path, train_images=np.zeros((6, 28, 28, 28), np.uint8)), "volumes are not supported")
    refused(save(tmp_path, train_images=np.zeros((6, 28, 28), np.float32)), r"\(6, 28, 28\) of float32")
    refused(save(tmp_path, val_images=np.zeros((2, 14, 14), np.uint8)), "different sizes")
    refused(save(tmp_path, val_labels=np.zeros((3, 1), np.uint8)), "differ in number")
    refused(save(tmp_path, val_labels=np.zeros((2, 1), np.float64)), "whole numbers")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    refused(save(tmp_path, train_labels=np.array([{}] * 6, dtype=object)), r"train_labels\.npy holds object")


def test_a_file_that_is_no_archive_or_breaks_off(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"nonsense")
    refused(tmp_path / "x.npz", r"x\.npz: not a readable")
    path = save(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, r"set\.npz: not a readable")


def test_flipped_bytes_give_images_or_a_named_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = save(tmp_path)
    original = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    refusals = 0
    for _ in range(100):
        flipped = original.copy()
        flipped[rng.integers(len(flipped), size=4)] = rng.integers(256, size=4)
        path.write_bytes(flipped.tobytes())
        try:
            load_images(str(path), image_size=28, unit="image")
        except DataError:
            refusals += 1
    assert refusals > 50


def test_a_bomb_is_refused_before_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, train_images=np.zeros((5000, 28, 28), np.uint8), train_labels=np.zeros((5000, 1), np.uint8))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(medmnist_module, "_MAX_BYTES", 1_000_000)
    refused(path, "unpacks to more than")


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    header = np.lib.format.MAGIC_PREFIX + bytes([1, 0])
    text = repr({"descr": "|u1", "fortran_order": False, "shape": (10**9, 28, 28)}).ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as archive:
        archive.writestr("train_images.npy", header + len(text).to_bytes(2, "little") + text.encode() + b"\0" * 784)
    refused(tmp_path / "liar.npz", "promises more values than it holds")
