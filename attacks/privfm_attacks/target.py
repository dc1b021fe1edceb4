"""What reconstructions are rehearsed on: two small networks, and made-up patients that are nobody's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from privfm.data import load_images
from privfm.data.views import make_unit_views, standardise
from privfm.federation.local_training import train_locally
from privfm.federation.network import Learner, build_learner, trained, write_trained
from privfm.federation.optimizers import NoisedGradient
from privfm.objectives import Reconstructs
from privfm.objectives.masking import patchify, unpatchify
from privfm.plan import ModelPlan, ObjectivePlan, OptimizerPlan, Plan

__all__ = ["VULNERABLE", "Gallery", "Target", "embeddings", "small", "vulnerable", "without_closed_form"]

VULNERABLE = "vit_tiny_patch16_224 under mae, 32-pixel images, patches of 4, width 64, one block, all of it trained"
"""A plain vision transformer that trains its positions and its patch embedding: where the closed form applies."""

MOST_FRAMES = 8
"""Of a patient, whatever the plan draws."""

POSITIONS, WEIGHTS = "backbone.timm.pos_embed", "backbone.timm.patch_embed.proj.weight"


@dataclass(frozen=True)
class Gallery:
    """Frames of made-up patients.

    Args:
        frames: of those who are attacked, in [0, 1].
        average: standardised mean of other patients' frames: what anybody knows beforehand.
    """

    frames: Float[Tensor, "patients frames c h w"]
    average: Float[Tensor, "c h w"]

    @classmethod
    def made(cls, plan: Plan, patients: int) -> Gallery:
        """As large as the plan's, with as many frames as the plan draws of a patient, again where there are fewer."""
        data, count = plan.data, min(plan.privacy.images_per_unit, MOST_FRAMES)
        phantom = load_images(
            "phantom", image_size=data.image_size, channels=data.channels, seed=plan.seed, patients=2 * patients
        )
        own = [images[np.arange(count) % len(images)] for images in phantom.by_patient()]
        frames = torch.from_numpy(phantom.load(np.concatenate(own)))
        frames = frames.reshape(2, patients, count, *frames.shape[1:])
        return cls(frames[0], standardise(frames[1].flatten(0, 1)).mean(dim=0))

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, patient: int) -> Float[Tensor, "1 c h w"]:
        """Return a patient's first frame, standardised."""
        return standardise(self.frames[patient, :1])

    def views(self, patient: int, count: int) -> Float[Tensor, "count c h w"]:
        """Return that many augmented views of the first frame, standardised; the same ones every time.

        >>> Gallery(torch.rand(2, 1, 1, 8, 8), torch.zeros(1, 8, 8)).views(1, 3).shape
        torch.Size([3, 1, 8, 8])
        """
        return standardise(make_unit_views(self.frames[patient, None, :1], count, [np.random.default_rng(patient)])[0])

    def patient(self, patient: int) -> Float[Tensor, "frames c h w"]:
        """Return all frames of a patient, standardised."""
        return standardise(self.frames[patient])


class Target:
    """A network, and all that the attacker knows of it: weights, objective, masks.

    Args:
        plan: complete; describes the network.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.learner = plan, build_learner(plan)
        self.learner.network.train()
        self.start = trained(self.learner.network)
        self._masks: dict[int, Tensor] = {}
        self._parameters = [value for value in self.learner.network.parameters() if value.requires_grad]

    def gradient(
        self, views: Float[Tensor, "views c h w"], key: int, *, differentiable: bool = False
    ) -> Float[Tensor, " parameters"]:
        """Return the gradient, at the network's weights, of one patient with these views.

        Args:
            key: of the patient's own randomness, such as masks.
            differentiable: with respect to the views; slower.
        """
        network, objective, _ = self.learner
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            loss = objective.unit_losses(network, views[None], [np.random.default_rng(key)])[0]
            parts = torch.autograd.grad(
                loss, self._parameters, create_graph=differentiable, allow_unused=True, materialize_grads=True
            )
        return torch.cat([part.flatten() for part in parts])

    def update(
        self, steps: Sequence[Float[Tensor, "views c h w"]], keys: Sequence[int], optimizer: OptimizerPlan
    ) -> Float[Tensor, " parameters"]:
        """Return what local steps on one patient, without clipping or noise, add to the weights.

        Args:
            steps: the views of every step.
            keys: of every step.
        """
        network = self.learner.network
        moved = train_locally(
            network,
            self.start,
            optimizer,
            len(steps),
            lambda step: NoisedGradient(self.gradient(steps[step], keys[step]), 0.0),
        )
        write_trained(network, self.start)
        return moved

    def seen(self, keys: Sequence[int]) -> Bool[Tensor, "c h w"]:
        """Return which pixels of a view the encoder sees in any of the steps with these keys; all, without masks."""
        return torch.stack([self._mask(key) for key in keys]).any(dim=0)

    def _mask(self, key: int) -> Bool[Tensor, "c h w"]:
        if key not in self._masks:
            network, objective, plan = self.learner
            blank = torch.ones(1, plan.data.channels, plan.data.image_size, plan.data.image_size)
            if isinstance(objective, Reconstructs):
                blank = objective.reconstruct(network, blank, np.random.default_rng(key))[0]
            self._masks[key] = blank[0] > 0
        return self._masks[key]

    def patches(self, image: Float[Tensor, "c h w"]) -> Float[Tensor, "patches pixels"]:
        return patchify(image[None], self._patch)[0]

    def image(self, patches: Float[Tensor, "patches pixels"]) -> Float[Tensor, "c h w"]:
        data = self.plan.data
        return unpatchify(patches[None], self._patch, (data.channels, data.image_size, data.image_size))[0]

    @property
    def _patch(self) -> int:
        return self.plan.model.patch_size or 1


def vulnerable(plan: Plan) -> Target:
    """Return the network of `VULNERABLE` with mae, and the plan's share of hidden patches if that is its objective."""
    model = ModelPlan(patch_size=4, width=64, depth=1, heads=2, trainable="all", init="scratch")
    return Target(_on(plan, model, 32, plan.objective if plan.objective.name == "mae" else ObjectivePlan()))


def small(plan: Plan) -> Target:
    """Return a network of one block with the plan's objective and trained part, for attacks that take iterations."""
    trainable = "last-1" if plan.model.trainable.startswith("last") else plan.model.trainable
    init = "public" if plan.model.init == "public" else "scratch"  # decides whether the head trains
    model = ModelPlan(patch_size=4, width=32, depth=1, heads=2, trainable=trainable, init=init)
    return Target(_on(plan, model, 16, plan.objective))


def _on(plan: Plan, model: ModelPlan, size: int, objective: ObjectivePlan) -> Plan:
    data = plan.data.model_copy(update={"source": "phantom", "image_size": size, "patients": None})
    return plan.model_copy(update={"model": model, "data": data, "objective": objective})


def embeddings(
    target: Target, vector: Float[Tensor, " parameters"]
) -> tuple[Float[Tensor, "patches width"], Float[Tensor, "width pixels"]]:
    """Return what a vector over the trained parameters holds for positions and for the patch embedding's weight."""
    network, start = target.learner.network, 0
    found: dict[str, Tensor] = {}
    for name, value in network.named_parameters():
        if value.requires_grad:
            found[name] = vector[start : start + value.numel()].reshape(value.shape)
            start += value.numel()
    positions, weights = found[POSITIONS][0], found[WEIGHTS].flatten(1)
    return positions[-((target.plan.data.image_size // target._patch) ** 2) :], weights


def without_closed_form(learner: Learner) -> str | None:
    """Return why a network has no closed form, or None where it has one."""
    trained_parts = {name for name, value in learner.network.named_parameters() if value.requires_grad}
    lacking = [part for name, part in _NEEDED.items() if name not in trained_parts]
    if not learner.network.backbone.drops_tokens:
        return "it is no plain vision transformer"
    return f"it does not train its {' and its '.join(lacking)}" if lacking else None


_NEEDED = {POSITIONS: "positions", WEIGHTS: "patch embedding"}
