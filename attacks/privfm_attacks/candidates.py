"""Gradients of made-up patients on a run's own network: candidates as they come, for the informed adversary."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from privfm.data import load_images
from privfm.federation.network import Learner
from privfm.federation.unit_batches import UnitBatch, UnitSource
from privfm.gradients import collected_shares

__all__ = ["too_costly", "unit_gradients"]

MOST_WORK = 2e10
"""Parameters times pixels of a patient, above which gradients of a hundred patients take minutes."""


def too_costly(learner: Learner) -> bool:
    """Whether the gradients of a hundred patients would take minutes on two cores."""
    parameters, plan = sum(value.numel() for value in learner.network.parameters()), learner.plan
    pixels = plan.data.image_size**2 * plan.privacy.images_per_unit * plan.privacy.views
    return parameters * pixels > MOST_WORK


def unit_gradients(learner: Learner, count: int, seed: int) -> Float[Tensor, "count directions"]:
    """Return the gradients of that many patients of `phantom`, in coordinates along their own span.

    Views and masks are one known draw for each patient. Noise looks the same along any orthonormal directions, so
    that nothing is lost by leaving out those in which no candidate pulls.

    Args:
        learner: the run's network and objective.
        seed: of patients and draws.
    """
    rows = torch.cat([_rows(learner, batch) for batch in _batches(learner, count, seed)])
    triangle: Tensor = torch.linalg.qr(rows.double().T, mode="r").R
    return triangle.T.float()


def _batches(learner: Learner, count: int, seed: int) -> list[UnitBatch]:
    plan, device = learner.plan, next(learner.network.parameters()).device
    data, privacy = plan.data, plan.privacy
    phantom = load_images("phantom", image_size=data.image_size, channels=data.channels, seed=seed, patients=count)
    source = UnitSource(
        phantom, images_per_unit=privacy.images_per_unit, views=privacy.views, micro_batch=10, device=device
    )
    rng = np.random.default_rng(seed)
    return list(source.batches(np.arange(count), lambda unit: np.random.default_rng(rng.integers(2**32))))


def _rows(learner: Learner, batch: UnitBatch) -> Float[Tensor, "units parameters"]:
    network, objective, _ = learner
    shares = collected_shares(network, lambda: objective.unit_losses(network, batch.views, batch.rngs), len(batch))
    trainable = [value for value in network.parameters() if value.requires_grad]
    return torch.cat([shares[value].rows().values.detach().cpu() for value in trainable], dim=1)[: batch.count]
