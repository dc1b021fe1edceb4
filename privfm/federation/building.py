"""Backbone, head and public images put together."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from privfm.data import procedural_images
from privfm.data.views import standardise
from privfm.models import BackboneSpec, add_adapters, build_backbone
from privfm.objectives import Network, Objective

__all__ = ["build_network", "comparison_images"]

_STREAM = 7  # apart from the images of the public start, which are drawn from the seed alone


def build_network(spec: BackboneSpec, objective: Objective, seed: int, adapter_rank: int | None = None) -> Network:
    """Return a fresh network; the arguments decide everything, so that all hospitals hold the same.

    Args:
        adapter_rank: of low-rank adapters at every linear layer of the backbone; None for no adapters.

    Raises:
        ModelError: the backbone is unknown or cannot be made sound.
        PlanError: the backbone takes no adapters.
    """
    backbone = build_backbone(spec, seed)
    if adapter_rank is not None:
        add_adapters(backbone, adapter_rank, seed)
    return objective.build(backbone, seed, comparison_images(spec, objective.public_images, seed))


def comparison_images(spec: BackboneSpec, count: int, seed: int) -> Float[Tensor, "count c h w"] | None:
    """Return standardised procedural images for an objective to compare with, or None if it wants none.

    They are drawn by a program from the plan's seed: nobody's data, and the same at every hospital.
    """
    if count == 0:
        return None
    rng = np.random.default_rng([seed, _STREAM])
    return standardise(torch.from_numpy(procedural_images(count, spec.image_size, spec.channels, rng)))
