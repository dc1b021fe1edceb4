from __future__ import annotations

import numpy as np
import pytest

from privfm.data import procedural_images
from privfm.data.fields import spectral_noise


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 1), (32, 3), (50, 1)])
def test_shape_and_range(size: int, channels: int) -> None:
    images = procedural_images(70, size, channels, np.random.default_rng(0))
    assert images.shape == (70, channels, size, size)
    assert images.dtype == np.float32
    assert np.isfinite(images).all()
    assert images.min() >= 0.0
    assert images.max() <= 1.0


def test_the_generator_decides_everything() -> None:
    first, again, other = (procedural_images(40, 16, 1, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_images_is_no_error() -> None:
    assert procedural_images(0, 16, 3, np.random.default_rng(0)).shape == (0, 3, 16, 16)


def test_almost_no_image_is_flat_or_a_copy() -> None:
    images = procedural_images(500, 32, 1, np.random.default_rng(0))[:, 0]
    assert np.quantile(images.std(axis=(1, 2)), 0.02) > 0.02
    flat = images.reshape(500, -1)
    flat = (flat - flat.mean(1, keepdims=True)) / (flat.std(1, keepdims=True) + 1e-6)
    alike = flat @ flat.T / flat.shape[1] - np.eye(500)
    assert np.quantile(alike, 0.999) < 0.95


def test_the_mean_spectrum_falls_like_that_of_photographs() -> None:
    images = procedural_images(400, 32, 1, np.random.default_rng(0))[:, 0]
    spectrum = np.abs(np.fft.fft2(images - images.mean(axis=(1, 2), keepdims=True))).mean(axis=0)
    along = spectrum[0, 1:12]
    slope = np.polyfit(np.log(np.arange(1, 12)), np.log(along), 1)[0]
    assert -1.6 < slope < -0.6


def test_spectral_noise_is_standardised() -> None:
    field = spectral_noise(50, 32, np.random.default_rng(0))
    np.testing.assert_allclose(field.mean(axis=(1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(field.std(axis=(1, 2)), 1, atol=1e-3)
