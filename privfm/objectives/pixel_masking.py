"""An auto-encoder whose encoder sees masked patches as blank pixels."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from privfm.errors import ModelError
from privfm.models import Backbone
from privfm.objectives.masking import patchify, unpatchify
from privfm.objectives.protocol import Network

__all__ = ["PixelMaskingNetwork"]

_PATCHES_PER_SIDE = 8


class PixelMaskingNetwork(Network):
    """Any backbone with a feature map: hidden patches are zeroed at its input, one linear layer reads its map.

    Source: Xie et al. 2022, "SimMIM: a simple framework for masked image modeling", sections 3.2 and 3.3.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        size, channels = backbone.spec.image_size, backbone.spec.channels
        rows, columns = backbone.grid
        if size % rows or rows != columns:
            raise ModelError(
                f"backbone {backbone.spec.name}: its {rows}x{columns} feature map does not divide "
                f"{size}-pixel images; choose another image size"
            )
        self.patch = backbone.spec.patch_size or max(size // _PATCHES_PER_SIDE, 1)
        if size % self.patch:
            raise ModelError(f"patch_size {self.patch} does not divide image_size {size}; choose one that does")
        self.patches = (size // self.patch) ** 2
        self.stride = size // rows
        self.predict = nn.Conv2d(backbone.map_width, channels * self.stride**2, kernel_size=1)

    def forward(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b kept"]
    ) -> Float[Tensor, "b patches pixels"]:
        """Predicted pixels of every patch, in the scale of its own statistics."""
        return self.decode(self.encode(images, keep), keep)

    def encode(self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b kept"]) -> Float[Tensor, "b positions d"]:
        """Features at the positions of the map, of the images without their hidden patches."""
        return self.backbone.feature_map(self._hide(images, keep)).flatten(2).transpose(1, 2)

    def decode(
        self, known: Float[Tensor, "b positions d"], keep: Int[Tensor, "b kept"]
    ) -> Float[Tensor, "b patches pixels"]:
        """Predicted pixels of every patch, from the features."""
        seen = known.transpose(1, 2).reshape(len(known), -1, *self.backbone.grid)
        pixels = nn.functional.pixel_shuffle(self.predict(seen), self.stride)
        return patchify(pixels, self.patch)

    def _hide(self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b kept"]) -> Float[Tensor, "b c h w"]:
        patches = patchify(images, self.patch)
        known = torch.zeros(patches.shape[:2], dtype=images.dtype, device=images.device).scatter(1, keep, 1.0)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        return unpatchify(patches * known.unsqueeze(-1), self.patch, shape)
