"""Masked auto-encoding: hide patches, predict their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from privfm.models import Backbone
from privfm.objectives.masked_prediction import MaskedNetwork, MaskedPrediction
from privfm.objectives.masking import normalised
from privfm.objectives.pixel_masking import PixelMaskingNetwork
from privfm.objectives.token_dropping import TokenDroppingNetwork

__all__ = ["MaskedAutoEncoding"]


@dataclass(frozen=True)
class MaskedAutoEncoding(MaskedPrediction):
    """Hide patches, predict their pixels: one loss per unit by construction.

    A plain vision transformer sees the remaining patches alone (He et al. 2022). Any other backbone sees the image
    with masked patches set to zero, the mean of a standardised image, and predicts from its feature map (Xie et al.
    2022, "SimMIM"; Woo et al. 2023, "ConvNeXt V2"). Targets are patches normalised each by its own statistics.

    Guarantees: nothing is shared between images. Masks come from the unit's own generator, the error of a view is
    the mean over its own masked patches, and every view hides the same number of them.

    Args:
        mask_ratio: share of the patches that is hidden, in (0, 1).
        decoder_width, decoder_depth, decoder_heads: the decoder behind a vision transformer.

    Raises:
        ValueError: `mask_ratio` is not in (0, 1).

    Source: He et al. 2022, "Masked autoencoders are scalable vision learners" (arXiv 2111.06377).
    """

    name: ClassVar[str] = "mae"
    mask_ratio: float = 0.75
    decoder_width: int = 64
    decoder_depth: int = 1
    decoder_heads: int = 4

    def _network(self, backbone: Backbone) -> MaskedNetwork:
        if backbone.drops_tokens:
            return TokenDroppingNetwork(backbone, self.decoder_width, self.decoder_depth, self.decoder_heads)
        return PixelMaskingNetwork(backbone)

    def _errors(
        self, predicted: Float[Tensor, "b patches pixels"], patches: Float[Tensor, "b patches pixels"]
    ) -> Float[Tensor, "b patches"]:
        return (predicted - normalised(patches)).square().mean(dim=-1)

    def _pixels(
        self, predicted: Float[Tensor, "b patches pixels"], patches: Float[Tensor, "b patches pixels"]
    ) -> Float[Tensor, "b patches pixels"]:
        """Predictions on each patch's own mean and deviation, which the network does not predict."""
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return predicted * (variance + 1e-6).sqrt() + mean
