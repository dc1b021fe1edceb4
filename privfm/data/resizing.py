"""Separable, antialiased resizing of arrays of any depth, the same for every source of images."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

__all__ = ["resize", "resize_nearest"]


def resize(images: Float[np.ndarray, "*batch h w"], height: int, width: int) -> Float[np.ndarray, "*batch h2 w2"]:
    """Images stretched to height x width with a triangle filter as wide as the shrinking needs; float32.

    The whole image is kept and its sides are scaled apart, so boxes scale by two factors and nothing is cut away.

    Example:
        >>> resize(np.array([[0.0, 0.0, 1.0, 1.0]] * 2), 1, 2).round(2).tolist()
        [[0.1..., 0.8...]]
    """
    images = np.asarray(images, dtype=np.float32)
    if images.shape[-2:] == (height, width):
        return images
    down = _triangle_weights(images.shape[-2], height)
    across = _triangle_weights(images.shape[-1], width)
    resized: NDArray[np.float32] = np.matmul(np.matmul(down, images), across.T)
    return resized


def resize_nearest(
    masks: UInt8[np.ndarray, "*batch h w"], height: int, width: int
) -> UInt8[np.ndarray, "*batch h2 w2"]:
    """Class masks sampled at the centres of the new pixels, so that no class appears that was not there."""
    rows = _centres(masks.shape[-2], height).astype(np.int64)
    columns = _centres(masks.shape[-1], width).astype(np.int64)
    return masks[..., rows[:, None], columns]


def _centres(size: int, new_size: int) -> NDArray[np.float64]:
    centres: NDArray[np.float64] = (np.arange(new_size, dtype=np.float64) + 0.5) * (size / new_size)
    return centres


@lru_cache(maxsize=256)
def _triangle_weights(size: int, new_size: int) -> NDArray[np.float32]:
    support = max(1.0, size / new_size)
    distance = np.abs(np.arange(size) + 0.5 - _centres(size, new_size)[:, None]) / support
    weights = np.maximum(0.0, 1.0 - distance)
    normalised: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised
