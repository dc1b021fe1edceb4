"""An auto-encoder whose encoder sees the kept patches alone."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from privfm.models import Backbone, sincos_positions
from privfm.models.torchvision_shim import timm
from privfm.objectives.protocol import Network

__all__ = ["TokenDroppingNetwork"]

_Block = timm.models.vision_transformer.Block
_LayerNorm = timm.layers.LayerNorm


class TokenDroppingNetwork(Network):
    """A vision transformer over the kept patches, and a light decoder over all of them.

    A hidden patch enters the decoder as its position alone: there is no trainable mask token, and positions are
    fixed, so that every trainable parameter belongs to a layer that sees the images in dimension 0.

    Source: He et al. 2022, "Masked autoencoders are scalable vision learners", section 3.
    """

    positions: Tensor

    def __init__(self, backbone: Backbone, width: int, depth: int, heads: int) -> None:
        super().__init__(backbone)
        rows, columns = backbone.grid
        self.patch = backbone.spec.image_size // rows
        self.patches = rows * columns
        self.embed = nn.Linear(backbone.map_width, width)
        self.blocks = nn.Sequential(*(_Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = _LayerNorm(width)
        self.predict = nn.Linear(width, backbone.spec.channels * self.patch**2)
        self.register_buffer("positions", sincos_positions(rows, columns, width), persistent=False)

    def forward(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b kept"]
    ) -> Float[Tensor, "b patches pixels"]:
        """Predicted pixels of every patch, in the scale of its own statistics."""
        known = self.embed(self.backbone.tokens(images, keep))
        index = keep.unsqueeze(-1).expand(-1, -1, known.shape[-1])
        tokens = torch.zeros(len(images), self.patches, known.shape[-1], dtype=known.dtype, device=known.device)
        tokens = tokens.scatter(1, index, known) + self.positions
        return cast(Tensor, self.predict(self.norm(self.blocks(tokens))))
