"""A small stand-in for a run's network, and made-up patients with and without a property, to rehearse attacks on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from privfm.data import load_images
from privfm.data.views import standardise
from privfm.federation.clip_norm import public_clip_norm
from privfm.federation.network import build_learner, trained, write_trained
from privfm.gradients import collected_shares
from privfm.models import set_trainable
from privfm.plan import ModelPlan, Plan

__all__ = ["SIDE", "Bank", "StandIn"]

SIDE = 16
"""Pixels a side of the stand-in's images."""

FRAMES = 1
"""Of a patient; the plan's own number would cost as many times the time."""


@dataclass(frozen=True)
class Bank:
    """Views of made-up patients.

    Args:
        views: of patients without the property, and of as many others with it.
    """

    views: tuple[Float[Tensor, "patients frames c h w"], Float[Tensor, "patients frames c h w"]]

    @classmethod
    def made(cls, channels: int, patients: int, seed: int) -> Bank:
        """The property is a scanner's: a quarter of the frame, at one corner, is black."""
        phantom = load_images(
            "phantom", image_size=SIDE, channels=channels, unit="patient", seed=seed, patients=2 * patients
        )
        frames = np.concatenate([images[:FRAMES] for images in phantom.by_patient()])
        pixels = torch.from_numpy(phantom.load(frames))
        pixels[len(pixels) // 2 :, :, : SIDE // 2, : SIDE // 2] = 0.0
        grouped = standardise(pixels).reshape(2, patients, FRAMES, *pixels.shape[1:])
        return cls((grouped[0], grouped[1]))

    def __len__(self) -> int:
        return len(self.views[0])


class StandIn:
    """The plan's objective and trained part, on a backbone of one block.

    The head stays as it is: it would be nine tenths of the stand-in's numbers, and of its time.

    Args:
        plan: complete.
    """

    def __init__(self, plan: Plan) -> None:
        self.learner = build_learner(_smaller(plan))
        set_trainable(self.learner.network, self.learner.plan.model.trainable, train_head=False)
        self.learner.network.train()
        self.start = trained(self.learner.network)

    @cached_property
    def clip_norm(self) -> float:
        """By the plan's own rule."""
        return public_clip_norm(self.learner.plan, self.learner)

    def rows(
        self, model: Float[Tensor, " parameters"], views: Float[Tensor, "units frames c h w"], key: int
    ) -> Float[Tensor, "units parameters"]:
        """Return every unit's clipped gradient at a model, in clip norms.

        Args:
            key: of the units' own randomness.
        """
        network, objective, _ = self.learner
        write_trained(network, model)
        rngs = [np.random.default_rng([key, unit]) for unit in range(len(views))]
        shares = collected_shares(network, lambda: objective.unit_losses(network, views, rngs), len(views))
        rows = torch.cat([share.rows().values.detach() for share in shares.values()], dim=1) / self.clip_norm
        norms: Tensor = rows.norm(dim=1, keepdim=True)
        return rows.div_(norms.clamp(min=1.0))


def _smaller(plan: Plan) -> Plan:
    """The plan with the stand-in's network and images."""
    trainable = "last-1" if plan.model.trainable.startswith("last") else plan.model.trainable
    model = ModelPlan(patch_size=4, width=16, depth=1, heads=2, trainable=trainable)
    data = plan.data.model_copy(update={"source": "phantom", "image_size": SIDE, "patients": None})
    privacy = plan.privacy.model_copy(update={"images_per_unit": FRAMES, "views": 1})
    return plan.model_copy(update={"model": model, "data": data, "privacy": privacy})
