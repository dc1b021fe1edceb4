"""Two looks at one view, drawn from the unit's own generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["Glances"]


@dataclass(frozen=True)
class Glances:
    """How two glances at a standardised view differ: crop, mirror image and tone.

    A glance is made of one view, so that any number of views an image will do, one included, and the mean over a
    unit's views stays a mean. What is drawn for a unit comes from that unit's generator, in the order of its views.

    Args:
        min_area: smallest part of the view's area that a glance shows.
        tone: strength of the tone curve (exp(b x) - 1) / b, b in [-tone, tone]; 0 leaves tones alone.

    Raises:
        ValueError: when a number is out of range.
    """

    min_area: float = 0.3
    tone: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.min_area <= 1.0:
            raise ValueError(f"min_area={self.min_area} must lie in (0, 1]")
        if not 0.0 <= self.tone <= 1.0:
            raise ValueError(f"tone={self.tone} must lie in [0, 1]")

    def draw(
        self, views: Float[Tensor, "units views c h w"], rngs: Sequence[np.random.Generator]
    ) -> Float[Tensor, "units*views*2 c h w"]:
        """Standardised glances, the two of a view side by side, those of a unit next to each other.

        >>> Glances().draw(torch.rand(1, 3, 1, 8, 8), [np.random.default_rng(0)]).shape
        torch.Size([6, 1, 8, 8])
        """
        drawn = np.concatenate([rng.random((2 * views.shape[1], 6), dtype=np.float32) for rng in rngs])
        images = views.flatten(0, 1).repeat_interleave(2, dim=0)
        maps = torch.from_numpy(self._maps(drawn)).to(images)
        grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
        crops = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return self._toned(crops, torch.from_numpy(drawn[:, 5]).to(images))

    def _maps(self, drawn: NDArray[np.float32]) -> NDArray[np.float32]:
        """Affine maps from a glance's coordinates to its view's, both in [-1, 1]."""
        area = self.min_area + (1.0 - self.min_area) * drawn[:, 0]
        stretch = (4.0 / 3.0) ** (2.0 * drawn[:, 1] - 1.0)
        width, height = np.minimum(np.sqrt(area * stretch), 1.0), np.minimum(np.sqrt(area / stretch), 1.0)
        maps = np.zeros((len(drawn), 2, 3), dtype=np.float32)
        maps[:, 0, 0] = width * np.where(drawn[:, 4] < 0.5, -1.0, 1.0)
        maps[:, 1, 1] = height
        maps[:, 0, 2] = (1.0 - width) * (2.0 * drawn[:, 2] - 1.0)
        maps[:, 1, 2] = (1.0 - height) * (2.0 * drawn[:, 3] - 1.0)
        return maps

    def _toned(self, crops: Float[Tensor, "n c h w"], uniform: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        bend = (self.tone * (2.0 * uniform - 1.0))[:, None, None, None]
        bent = torch.where(bend.abs() > 1e-3, torch.expm1(bend * crops.clamp(-4, 4)) / bend, crops)
        variance, mean = torch.var_mean(bent, dim=(1, 2, 3), keepdim=True, correction=0)
        return (bent - mean) / (variance + 1e-4).sqrt()
