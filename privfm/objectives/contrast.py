"""Telling images apart by their features: for public images alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["contrast"]


def contrast(
    first: Float[Tensor, "images d"], second: Float[Tensor, "images d"], temperature: float
) -> Float[Tensor, ""]:
    """How badly two views of each image are found among the views of all images, in nats.

    Warning: every image's loss depends on all the others. No gradient of it belongs to one patient, so it is no
    objective that `get_objective` offers; it may see images that are nobody's data.

    Source: Chen et al. 2020, "A simple framework for contrastive learning of visual representations", equation 1.

    >>> views = torch.eye(4)
    >>> bool(contrast(views, views, 0.1) < contrast(views, views.flip(0), 0.1))
    True
    """
    views = nn.functional.normalize(torch.cat([first, second]), dim=1)
    similarity = views @ views.T / temperature
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return nn.functional.cross_entropy(similarity.masked_fill(itself, float("-inf")), partner)
