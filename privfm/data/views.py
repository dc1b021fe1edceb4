"""Augmented views of images, each unit's drawn from that unit's own generator.

Nothing here looks across units: a unit's views are a function of its images and its generator, whoever else is in the
batch. Crops are resampled with torch, for one unit or for a batch of them in a single call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["Augmentation", "make_unit_views", "make_views", "standardise"]


@dataclass(frozen=True)
class Augmentation:
    """How views differ from their image.

    Args:
        min_area: smallest part of the image's area that a crop may show; 1 keeps the whole image.
        max_stretch: largest ratio of a crop's sides.
        horizontal_flip: mirror half of the views left to right.
        vertical_flip: mirror half of the views top to bottom.
        brightness: views are raised to a power between exp(-brightness) and exp(brightness), which, unlike a factor,
            still shows after standardisation; 0 leaves them alone.

    Raises:
        ValueError: when a number is out of range.
    """

    min_area: float = 0.5
    max_stretch: float = 4 / 3
    horizontal_flip: bool = True
    vertical_flip: bool = False
    brightness: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.min_area <= 1.0:
            raise ValueError(f"min_area={self.min_area} must lie in (0, 1]")
        if not self.max_stretch >= 1.0:
            raise ValueError(f"max_stretch={self.max_stretch} must be at least 1")
        if not 0.0 <= self.brightness <= 2.0:
            raise ValueError(f"brightness={self.brightness} must lie in [0, 2]")


_DEFAULT = Augmentation()


@dataclass(frozen=True, eq=False)
class _Draws:
    """What was drawn for n views: affine maps [n 2 3] from view to image coordinates in [-1, 1], and exponents [n]."""

    maps: NDArray[np.float32]
    exponents: NDArray[np.float32]


def make_views(
    images: Float[Tensor, "images c h w"],
    views: int,
    rng: np.random.Generator,
    augmentation: Augmentation = _DEFAULT,
) -> Float[Tensor, "images*{views} c h w"]:
    """Views of one unit's images, all views of an image side by side.

    Args:
        images: in [0, 1], on any device.
        views: how many of each image.
        rng: that unit's generator.

    Example:
        >>> make_views(torch.zeros(2, 1, 8, 8), 3, np.random.default_rng(0)).shape
        torch.Size([6, 1, 8, 8])
    """
    draws = _draw(len(images) * views, rng, augmentation)
    return _render(images.repeat_interleave(views, dim=0), draws)


def make_unit_views(
    images: Float[Tensor, "units images c h w"],
    views: int,
    rngs: Sequence[np.random.Generator],
    augmentation: Augmentation = _DEFAULT,
) -> Float[Tensor, "units images*{views} c h w"]:
    """Views of many units at once; row i is what make_views gives for unit i and rngs[i].

    Raises:
        ValueError: when there is not one generator a unit.
    """
    units, per_unit = images.shape[:2]
    if len(rngs) != units:
        raise ValueError(f"rngs={len(rngs)} for {units} units")
    if not units:
        return images.new_empty((0, per_unit * views, *images.shape[2:]))
    drawn = [_draw(per_unit * views, rng, augmentation) for rng in rngs]
    draws = _Draws(np.concatenate([d.maps for d in drawn]), np.concatenate([d.exponents for d in drawn]))
    rendered = _render(images.flatten(0, 1).repeat_interleave(views, dim=0), draws)
    return rendered.reshape(units, per_unit * views, *images.shape[2:])


def standardise(images: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch c h w"]:
    """Each image with mean 0 and variance 1 over its pixels and channels; a blank image becomes zeros.

    Example:
        >>> standardise(torch.ones(1, 1, 4, 4)).abs().max()
        tensor(0.)
    """
    centred = images - images.mean(dim=(-3, -2, -1), keepdim=True)
    deviation = centred.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt()
    # Rounding alone leaves about 1e-7 of a blank image's brightness; enlarging that to unit variance would be noise.
    return torch.where(deviation > 1e-5, centred / deviation.clamp_min(1e-5), torch.zeros_like(centred))


def _draw(count: int, rng: np.random.Generator, augmentation: Augmentation) -> _Draws:
    uniform = rng.random((count, 7), dtype=np.float32)
    area = augmentation.min_area + (1.0 - augmentation.min_area) * uniform[:, 0]
    stretch = augmentation.max_stretch ** (2.0 * uniform[:, 1] - 1.0)
    width = np.minimum(np.sqrt(area * stretch), 1.0)
    height = np.minimum(np.sqrt(area / stretch), 1.0)
    maps = np.zeros((count, 2, 3), dtype=np.float32)
    maps[:, 0, 0] = width * _signs(uniform[:, 4], augmentation.horizontal_flip)
    maps[:, 1, 1] = height * _signs(uniform[:, 5], augmentation.vertical_flip)
    maps[:, 0, 2] = (1.0 - width) * (2.0 * uniform[:, 2] - 1.0)
    maps[:, 1, 2] = (1.0 - height) * (2.0 * uniform[:, 3] - 1.0)
    return _Draws(maps, np.exp(augmentation.brightness * (2.0 * uniform[:, 6] - 1.0)).astype(np.float32))


def _signs(uniform: NDArray[np.float32], flip: bool) -> NDArray[np.float32]:
    return np.where(flip & (uniform < 0.5), np.float32(-1.0), np.float32(1.0))


def _render(images: Float[Tensor, "n c h w"], draws: _Draws) -> Float[Tensor, "n c h w"]:
    maps = torch.from_numpy(draws.maps).to(images.device, images.dtype)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    views = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if (draws.exponents == 1.0).all():
        return views
    exponents = torch.from_numpy(draws.exponents).to(images.device, images.dtype)
    return views.clamp_min(0.0) ** exponents[:, None, None, None]
