"""Where gradients are computed, and how many units fit there at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from privfm.errors import PlanError
from privfm.federation.network import Learner
from privfm.federation.planning import mechanism_of
from privfm.plan import HospitalPlan, Plan

__all__ = ["pick_device", "units_at_a_time"]

ACTIVATION_BYTES = 1 << 30
"""Memory that a micro-batch may take on a CPU; eight times as much on a GPU."""

MOST_UNITS = 64
"""On a CPU, where more at a time are no faster; eight times as many on a GPU."""


def pick_device(name: str) -> torch.device:
    """Return the device that a plan names; "auto" takes a GPU when there is one.

    Raises:
        PlanError: a GPU was named that is not there.
    """
    torch.backends.cuda.matmul.allow_tf32 = False  # norms and sums of gradients are worth their digits
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PlanError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here; use auto or cpu")
    return device


def micro_batch_of(plan: Plan, hospital: HospitalPlan, most: int) -> int:
    """Return the units that are computed together: the plan's number, or a quarter of those that a step expects.

    A public number, to which every batch is filled up with blank units; so it should not be large beside what is drawn.

    Args:
        most: what `units_at_a_time` allows.
    """
    return plan.performance.micro_batch or min(most, math.ceil(mechanism_of(plan, hospital).divisor / 4))


def units_at_a_time(plan: Plan, learner: Learner, device: torch.device) -> int:
    """Return how many units have their activations within the memory set aside, or the plan's micro-batch.

    What clipping keeps of a layer is what it sees and the gradient at what it gives; so a unit takes about twice what
    autograd saves of its forward pass, which is measured on one unit of blank images.
    """
    if plan.performance.micro_batch is not None:
        return plan.performance.micro_batch
    share = 8 if device.type == "cuda" else 1
    return max(1, min(MOST_UNITS * share, ACTIVATION_BYTES * share // (2 * _saved_bytes(plan, learner))))


def _saved_bytes(plan: Plan, learner: Learner) -> int:
    """Of one unit's forward pass, the network's own weights left out."""
    network, objective, _ = learner
    views, size = plan.privacy.images_per_unit * plan.privacy.views, plan.data.image_size
    blank = torch.zeros(1, views, plan.data.channels, size, size, device=next(network.parameters()).device)
    own = {value.untyped_storage().data_ptr() for value in (*network.parameters(), *network.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = objective.unit_losses(network, blank, [np.random.default_rng(0)])
    del losses  # until here every storage was alive, so that none stands for two
    return max(1, sum(size for pointer, size in saved.items() if pointer not in own))
