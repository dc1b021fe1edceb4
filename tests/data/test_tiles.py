from __future__ import annotations

import socket

import numpy as np
import pytest

from privfm.data import load_tiles, patient_classes
from privfm.data import tiles as tiles_module
from privfm.errors import DataError


def test_the_built_in_set_has_the_published_size() -> None:
    images = load_tiles()
    assert (len(images), len(images.patients), len(images.class_names)) == (4532, 339, 16)
    assert images.public
    assert not images.synthetic


def test_a_patient_has_one_class_and_at_most_sixteen_tiles() -> None:
    images = load_tiles()
    assert images.labels is not None
    assert (patient_classes(images)[images.patient_of] == images.labels).all()
    assert np.bincount(images.patient_of).max() == 16


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (24, 1), (32, 3), (64, 1), (224, 3)])
def test_other_sizes_keep_the_patients(size: int, channels: int) -> None:
    images = load_tiles(size, channels)
    batch = images.load(np.arange(5))
    assert batch.shape == (5, channels, size, size)
    assert batch.dtype == np.float32
    assert 0.0 <= batch.min() < batch.max() <= 1.0
    assert 300 <= len(images.patients) <= 400
    assert len(images.class_names) == 16


def test_tiles_show_the_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_tiles(128, 3)
    first = images.load(np.array([images.patients.index("chelsea-00-01")]))
    photograph = tiles_module._read_rgb(tiles_module._photograph_folder() / "chelsea.png")
    expected = photograph[:128, 128:256].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(first[0], expected, atol=1e-6)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(load_tiles()) == 4532


def test_a_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "_PHOTOGRAPHS", ("moon.png", "nowhere.png"))
    with pytest.raises(DataError, match=r"nowhere\.png is missing"):
        load_tiles()
