"""Built-in public images on which the coordinator may look at the global model: nobody's private data."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from privfm.data import load_images
from privfm.data.views import standardise
from privfm.federation.network import Learner
from privfm.plan import Plan

__all__ = ["public_images", "public_loss"]

COUNT = 256


def public_images(plan: Plan, count: int = COUNT) -> Float[Tensor, "count c h w"]:
    """Return standardised tiles of scikit-image's photographs at the plan's size, the same ones every time."""
    tiles = load_images("tiles", image_size=plan.data.image_size, channels=plan.data.channels)
    chosen = np.sort(np.random.default_rng(0).choice(len(tiles), min(count, len(tiles)), replace=False))
    return standardise(torch.from_numpy(tiles.load(chosen)))


@torch.no_grad()
def public_loss(learner: Learner, images: Float[Tensor, "b c h w"]) -> float:
    """Return the mean loss over public images, with the same masks every time."""
    device = next(learner.network.parameters()).device
    rngs = [np.random.default_rng(index) for index in range(len(images))]
    return float(learner.objective.unit_losses(learner.network, images[:, None].to(device), rngs).mean())
