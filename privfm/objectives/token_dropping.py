"""An auto-encoder whose encoder sees the kept patches alone."""

from __future__ import annotations

from typing import cast

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
        return self.decode(self.encode(images, keep), keep)

    def encode(self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b kept"]) -> Float[Tensor, "b kept d"]:
        """Features of the kept patches."""
        return self.backbone.tokens(images, keep)

    def decode(
        self, known: Float[Tensor, "b kept d"], keep: Int[Tensor, "b kept"]
    ) -> Float[Tensor, "b patches pixels"]:
        """Predicted pixels of every patch, from the features of the kept ones."""
        embedded = self.embed(known)
        index = keep.unsqueeze(-1).expand(-1, -1, embedded.shape[-1])
        tokens = embedded.new_zeros(len(embedded), self.patches, embedded.shape[-1])
        tokens = tokens.scatter(1, index, embedded) + self.positions
        return cast(Tensor, self.predict(self.norm(self.blocks(tokens))))
