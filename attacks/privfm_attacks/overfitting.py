"""The control of the membership audit: an encoder that was trained on few images, without privacy, for too long."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from privfm.data.views import standardise
from privfm.federation.network import Learner

__all__ = ["overfit"]

BATCH = 20
LEARNING_RATE = 2e-3


def overfit(
    learner: Learner,
    images: Float[Tensor, "images c h w"],
    steps: int,
    seconds: float,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Train all of a network on the images as they are, and return how many steps there was time for.

    Args:
        learner: the network, changed in place; every parameter that can train does, whatever its plan says.
        steps, seconds: at most.
        rng: of the order, and of the objective's own draws.
        progress: told steps done and to do.
    """
    network, began = learner.network.train(), time.monotonic()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in network.fixed)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    views = standardise(images)[:, None]
    for step in range(steps):
        if time.monotonic() - began > seconds:
            return step
        chosen = views[torch.from_numpy(rng.choice(len(views), min(BATCH, len(views)), replace=False))]
        loss = learner.objective.unit_losses(network, chosen, [rng] * len(chosen)).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        network.refresh()
        progress(step + 1, steps)
    return steps
