"""A clip norm and a bound on losses that fit the network, found without looking at anybody's images."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from privfm.data import procedural_images
from privfm.data.views import standardise
from privfm.dp.clipping import gradient_norms
from privfm.federation.network import Learner
from privfm.plan import Plan

__all__ = ["public_clip_norm", "public_loss_bound"]

UNITS = 32


def public_clip_norm(plan: Plan, learner: Learner) -> float:
    """Return the median gradient norm of imaginary units of procedural images at the run's start, to two digits.

    A clip norm far above the gradients' norms drowns them in noise; one at the median is the usual choice (Andrew et
    al. 2021). Taken from images that a program drew, it costs no privacy.
    """
    network, views = learner.network.train(), _imaginary_units(plan)
    norms = [
        gradient_norms(
            network,
            lambda unit=unit: learner.objective.unit_losses(  # type: ignore[misc]
                network, views[unit : unit + 1], [np.random.default_rng(unit)]
            ),
            1,
        )
        for unit in range(UNITS)
    ]
    return float(f"{float(torch.cat(norms).median()):.2g}")


@torch.no_grad()
def public_loss_bound(plan: Plan, learner: Learner) -> float:
    """Return twice the median loss of imaginary units of procedural images at the run's start, to two digits."""
    network, views = learner.network.train(), _imaginary_units(plan)
    rngs = [np.random.default_rng(unit) for unit in range(UNITS)]
    return float(f"{2 * float(learner.objective.unit_losses(network, views, rngs).median()):.2g}")


def _imaginary_units(plan: Plan) -> Float[Tensor, "units views c h w"]:
    per_unit = plan.privacy.images_per_unit * plan.privacy.views
    rng = np.random.default_rng(plan.seed)
    images = procedural_images(UNITS * per_unit, plan.data.image_size, plan.data.channels, rng)
    return standardise(torch.from_numpy(images)).reshape(UNITS, per_unit, *images.shape[1:])
