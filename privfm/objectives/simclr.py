"""Telling a view from images that are nobody's: SimCLR with public negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from privfm.models import Backbone
from privfm.objectives.embedding import EmbeddingNetwork, TwoGlances, mlp, moments, paired, swapped

__all__ = ["SimClr"]


class SimClrNetwork(EmbeddingNetwork):
    """An embedding, and where the public images lie in it."""

    centre: Tensor
    spread: Tensor
    negatives: Tensor

    def __init__(
        self, backbone: Backbone, project: nn.Module, public: Float[Tensor, "public c h w"], *, width: int
    ) -> None:
        super().__init__(backbone, project, public)
        self.register_buffer("centre", torch.zeros(width), persistent=False)
        self.register_buffer("spread", torch.ones(width), persistent=False)
        self.register_buffer("negatives", torch.zeros(len(public), width), persistent=False)

    def on_sphere(self, projected: Float[Tensor, "b e"]) -> Float[Tensor, "b e"]:
        """Directions as seen from the public images' centre: else all views could flee there together."""
        return normalize((projected - self.centre) / self.spread, dim=1)

    def _follow(self, projected: Float[Tensor, "public e"]) -> None:
        centre, spread = moments(projected)
        self.centre.copy_(centre)
        self.spread.copy_(spread)
        self.negatives.copy_(self.on_sphere(projected))


@dataclass(frozen=True)
class SimClr(TwoGlances[SimClrNetwork]):
    """Tell the other glance at a view from public images: SimCLR's loss, with negatives that are nobody's.

    In the original, a view's negatives are the other images of the batch, so that one patient's gradient is made of
    all the others'. Here they are projections of public images by the last released model, the same constants for all
    units and all hospitals: a unit's loss is a function of the unit and of public state, and moving another unit
    leaves it as it was. The price is that nothing pushes two patients' images apart directly.

    Args:
        min_area, tone: how glances differ, see `Glances`.
        width: of the embeddings.
        hidden: width of the layer before.
        temperature: what cosines are divided by.
        negatives: how many public images there are.

    Raises:
        ValueError: a number is out of range.

    Source: Chen et al. 2020, "A simple framework for contrastive learning of visual representations" (arXiv
    2002.05709), equation 1, with layer norm in the head; negatives that are constants, as in He et al. 2020, "MoCo",
    equation 1, without its queue of other people's embeddings.
    """

    name: ClassVar[str] = "simclr"
    temperature: float = 0.2
    negatives: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("temperature", "negatives")

    @property
    def public_images(self) -> int:
        """The negatives."""
        return self.negatives

    @property
    def _kind(self) -> type[SimClrNetwork]:
        return SimClrNetwork

    def _network(self, backbone: Backbone, public: Float[Tensor, "public c h w"]) -> SimClrNetwork:
        return SimClrNetwork(backbone, mlp(backbone.width, self.hidden, self.width), public, width=self.width)

    def _compare(
        self, network: SimClrNetwork, glances: Float[Tensor, "glances c h w"], projected: Float[Tensor, "glances e"]
    ) -> Float[Tensor, " views"]:
        embedded = network.on_sphere(projected)
        alike = (embedded * swapped(embedded)).sum(dim=1, keepdim=True)
        logits = torch.cat([alike, embedded @ network.negatives.T], dim=1) / self.temperature
        first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return paired(cross_entropy(logits, first, reduction="none"))
