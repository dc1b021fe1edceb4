"""What a self-supervised objective is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from privfm.models import Backbone

__all__ = ["Network", "Objective", "Reconstructs"]


class Network(nn.Module):
    """A backbone with the head that an objective trains it through.

    Attributes:
        backbone: the part that is kept after training.
        fixed: names of the parameters that never train, relative to this module.
        feature_width: length of the features that `Objective.losses_and_features` gives.
    """

    backbone: Backbone

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.fixed = frozenset(f"backbone.{name}" for name in backbone.fixed)
        self.feature_width = backbone.map_width

    def fix_unused(self, loss: Tensor) -> None:
        """Take the parameters that this loss does not depend on out of training, such as a norm before a classifier."""
        names, values = zip(*((n, v) for n, v in self.named_parameters() if v.requires_grad), strict=True)
        gradients = torch.autograd.grad(loss, values, allow_unused=True)
        self.fixed |= {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}
        for name, value in self.named_parameters():
            value.requires_grad_(name not in self.fixed)

    def refresh(self) -> None:
        """Let whatever follows the weights catch up with them; nothing, unless the objective has a teacher.

        Preconditions: the weights are a released model, or come from noised gradients alone. Whoever writes a model
        into the network calls this, and a step of an optimiser does not.
        """


@runtime_checkable
class Objective(Protocol):
    """A loss with one value per privacy unit.

    Guarantees: the loss of a unit, and so its gradient, is a function of the network, of that unit's views and of
    that unit's own generator. Moving or removing another unit leaves it as it was.
    """

    @property
    def name(self) -> str: ...

    @property
    def public_images(self) -> int:
        """How many images that are nobody's the loss compares with; 0 for most objectives."""
        ...

    def build(self, backbone: Backbone, seed: int, public: Float[Tensor, "public c h w"] | None = None) -> Network:
        """The backbone with a freshly drawn head; the same seed gives the same head.

        Args:
            public: `public_images` standardised images that are nobody's, the same for all units.
        """
        ...

    def unit_losses(
        self,
        network: Network,
        views: Float[Tensor, "units views c h w"],
        rngs: Sequence[np.random.Generator],
    ) -> Float[Tensor, " units"]:
        """The mean loss over each unit's views.

        Args:
            views: standardised images.
            rngs: one generator per unit, used for that unit alone.
        """
        ...

    def losses_and_features(
        self,
        network: Network,
        views: Float[Tensor, "units views c h w"],
        rngs: Sequence[np.random.Generator],
    ) -> tuple[Float[Tensor, " units"], Float[Tensor, "units views d"]]:
        """The same losses, and the pooled features of each view on the way to them; for training on public images."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """An objective whose network predicts pixels, which can be looked at."""

    @property
    def mask_ratio(self) -> float:
        """Share of the patches that is hidden from the network."""
        ...

    def reconstruct(
        self, network: Network, images: Float[Tensor, "b c h w"], rng: np.random.Generator
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """The images as the network saw them, and what it made of them; for a report's eyes."""
        ...
