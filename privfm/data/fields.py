"""Random scalar fields over an image, many images at a time; the material of everything that is drawn here."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

__all__ = ["frame", "spectral_noise", "uniform"]


def frame(size: int) -> tuple[Float[np.ndarray, "1 size"], Float[np.ndarray, "size 1"]]:
    """x along columns and y along rows, at pixel centres in [-1, 1], ready to broadcast; float32."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    return line[None, :], line[:, None]


def uniform(
    rng: np.random.Generator, low: float | int, high: float | int, count: int
) -> Float[np.ndarray, "count 1 1"]:
    """One float32 draw per image, ready to broadcast over its pixels."""
    return (low + (high - low) * rng.random((count, 1, 1), dtype=np.float32)).astype(np.float32)


def spectral_noise(
    count: int, size: int, rng: np.random.Generator, *, exponents: tuple[float, float] = (0.5, 2.0)
) -> Float[np.ndarray, "count size size"]:
    """Gaussian fields with amplitude falling as frequency**-exponent along a random stretch; mean 0, variance 1.

    Natural images have an exponent near 1. Each field draws its exponent from the range, and how much it is stretched
    along a random direction.

    Source: Field 1987, "Relations between the statistics of natural images and the response properties of cortical
    cells".
    """
    rows, columns = size, size // 2 + 1
    fy = np.fft.fftfreq(size)[:, None].astype(np.float32) * size
    fx = np.fft.rfftfreq(size)[None, :].astype(np.float32) * size
    angle = uniform(rng, 0.0, np.pi, count)
    stretch = np.exp2(uniform(rng, 0.0, 2.5, count) * (rng.random((count, 1, 1)) < 0.4)).astype(np.float32)
    along = (np.cos(angle) * fx + np.sin(angle) * fy) * stretch
    across = np.cos(angle) * fy - np.sin(angle) * fx
    power = along * along + across * across
    power[:, 0, 0] = np.inf
    amplitude = np.exp(-0.5 * uniform(rng, *exponents, count) * np.log(power))
    waves = rng.standard_normal((count, rows, columns, 2), dtype=np.float32).view(np.complex64)[..., 0]
    field = np.fft.irfft2(waves * amplitude, s=(size, size)).astype(np.float32)
    field /= field.std(axis=(1, 2), keepdims=True) + np.float32(1e-12)
    return field
