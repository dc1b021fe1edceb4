"""Masks, and patches as targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["draw_orders", "normalised", "patchify", "unpatchify"]


def draw_orders(rngs: Sequence[np.random.Generator], views: int, patches: int) -> Int[Tensor, "masks patches"]:
    """A random order of the patches for every view, each unit's from its own generator.

    The first so many of an order are kept and the rest is masked.

    >>> draw_orders([np.random.default_rng(0)], views=2, patches=4).shape
    torch.Size([2, 4])
    """
    orders = [rng.random((views, patches)).argsort(axis=1) for rng in rngs]
    return torch.from_numpy(np.concatenate(orders))


def patchify(images: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b patches pixels"]:
    """Square patches in row order, each as one vector of c * patch * patch pixels."""
    b, c, h, w = images.shape
    grid = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(
    patches: Float[Tensor, "b patches pixels"], patch: int, shape: tuple[int, int, int]
) -> Float[Tensor, "b c h w"]:
    """The images whose patches these are; `shape` is (channels, height, width).

    >>> images = torch.rand(2, 3, 8, 12)
    >>> torch.equal(unpatchify(patchify(images, 4), 4, (3, 8, 12)), images)
    True
    """
    c, h, w = shape
    grid = patches.reshape(len(patches), h // patch, w // patch, c, patch, patch)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), c, h, w)


def normalised(patches: Float[Tensor, "b patches pixels"]) -> Float[Tensor, "b patches pixels"]:
    """Every patch less its mean, over its standard deviation. Source: He et al. 2022, section 4.1."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()
