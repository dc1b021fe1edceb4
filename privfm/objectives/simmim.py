"""Masked image modelling in pixels: SimMIM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from privfm.models import Backbone
from privfm.objectives.masked_prediction import MaskedNetwork, MaskedPrediction
from privfm.objectives.pixel_masking import PixelMaskingNetwork

__all__ = ["SimMim"]


@dataclass(frozen=True)
class SimMim(MaskedPrediction):
    """Blank patches of the input, predict their raw pixels by one linear layer: one loss per unit by construction.

    The whole image passes through any backbone, with hidden patches at zero, the mean of a standardised image, where
    the paper has a trainable mask token. The error is the mean absolute difference.

    Guarantees: nothing is shared between images. The paper divides the summed error of a *batch* by the number of
    pixels masked in it; here the error of a view is the mean over its own masked patches, so that how much a unit
    hides says nothing about what another one's error weighs.

    Args:
        mask_ratio: share of the patches that is hidden, in (0, 1).

    Raises:
        ValueError: `mask_ratio` is not in (0, 1).

    Source: Xie et al. 2022, "SimMIM: a simple framework for masked image modeling" (arXiv 2111.09886), section 3.
    """

    name: ClassVar[str] = "simmim"
    mask_ratio: float = 0.6

    def _network(self, backbone: Backbone) -> MaskedNetwork:
        return PixelMaskingNetwork(backbone)

    def _errors(
        self, predicted: Float[Tensor, "b patches pixels"], patches: Float[Tensor, "b patches pixels"]
    ) -> Float[Tensor, "b patches"]:
        return (predicted - patches).abs().mean(dim=-1)

    def _pixels(
        self, predicted: Float[Tensor, "b patches pixels"], patches: Float[Tensor, "b patches pixels"]
    ) -> Float[Tensor, "b patches pixels"]:
        return predicted
