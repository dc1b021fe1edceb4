"""Predicting one glance's embedding from the other's: SimSiam and BYOL, without batch norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from privfm.models import Backbone
from privfm.objectives.embedding import EmbeddingNetwork, TwoGlances, mlp, moments, paired, swapped
from privfm.objectives.teacher import Snapshot

__all__ = ["Byol", "SimSiam"]


class SiameseNetwork(EmbeddingNetwork):
    """An embedding, its predictor, and the public images' mean and deviation of embeddings."""

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        backbone: Backbone,
        project: nn.Module,
        predict: nn.Module,
        public: Float[Tensor, "public c h w"],
        *,
        width: int,
        teaches: bool,
    ) -> None:
        super().__init__(backbone, project, public)
        self.predict = predict
        self.register_buffer("centre", torch.zeros(width), persistent=False)
        self.register_buffer("spread", torch.ones(width), persistent=False)
        self.teacher = Snapshot(self) if teaches else None

    def refresh(self) -> None:
        """Measure the public images, and let the teacher know what the network knows."""
        super().refresh()
        if self.teacher is not None:
            self.teacher.take(self)

    def _follow(self, projected: Float[Tensor, "public e"]) -> None:
        centre, spread = moments(projected)
        self.centre.copy_(centre)
        self.spread.copy_(spread)


@dataclass(frozen=True)
class _Siamese(TwoGlances[SiameseNetwork]):
    """What SimSiam and BYOL share."""

    teaches: ClassVar[bool]
    public: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.public < 2:
            raise ValueError(f"public={self.public} must be at least 2: deviations are taken over public images")

    @property
    def public_images(self) -> int:
        """Targets are standardised by the statistics of so many public images."""
        return self.public

    @property
    def _kind(self) -> type[SiameseNetwork]:
        return SiameseNetwork

    def _network(self, backbone: Backbone, public: Float[Tensor, "public c h w"]) -> SiameseNetwork:
        project = mlp(backbone.width, self.hidden, self.width)
        predict = mlp(self.width, self.hidden, self.width)
        return SiameseNetwork(backbone, project, predict, public, width=self.width, teaches=self.teaches)

    def _compare(
        self, network: SiameseNetwork, glances: Float[Tensor, "glances c h w"], projected: Float[Tensor, "glances e"]
    ) -> Float[Tensor, " views"]:
        target = projected.detach() if network.teacher is None else network.teacher.teach(network, glances)
        target = (target - network.centre) / network.spread
        cost: Tensor = 1 - cosine_similarity(network.predict(projected), swapped(target), dim=1)
        return paired(cost)


@dataclass(frozen=True)
class SimSiam(_Siamese):
    """Predict the other glance's projection, which no gradient flows through: SimSiam without batch norm.

    The original normalises its projections and predictions over the batch, and collapses without. Here heads have
    layer norm, and targets are standardised by the mean and deviation of public images' projections by the last
    released model. A unit's loss is a function of the unit, the network and public constants; moving another unit
    leaves it as it was.

    Args:
        min_area, tone: how glances differ, see `Glances`.
        width: of the projections.
        hidden: width of the layers before.
        public: how many public images targets are standardised by.

    Raises:
        ValueError: a number is out of range.

    Source: Chen & He 2021, "Exploring simple Siamese representation learning" (arXiv 2011.10566), algorithm 1.
    """

    name: ClassVar[str] = "simsiam"
    teaches: ClassVar[bool] = False


@dataclass(frozen=True)
class Byol(_Siamese):
    """Predict what a teacher makes of the other glance: BYOL with a released teacher, without batch norm.

    The original's teacher averages the weights of every step, which under differential privacy would be fine for
    noised steps alone, and its heads normalise over the batch. Here the teacher is the last released model: it is
    taken when one is written into the network and at no other time. Heads have layer norm (Richemond et al. 2020,
    "BYOL works even without batch statistics", arXiv 2010.10241) and targets are standardised as in `SimSiam`. A
    unit's loss is a function of the unit, the network and public constants.

    Args:
        min_area, tone: how glances differ, see `Glances`.
        width: of the projections.
        hidden: width of the layers before.
        public: how many public images targets are standardised by.

    Raises:
        ValueError: a number is out of range.

    Source: Grill et al. 2020, "Bootstrap your own latent" (arXiv 2006.07733), equation 2.
    """

    name: ClassVar[str] = "byol"
    teaches: ClassVar[bool] = True
