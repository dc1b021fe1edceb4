"""Self-distillation: DINO with a public centre and a released teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from privfm.models import Backbone
from privfm.objectives.embedding import EmbeddingNetwork, TwoGlances, mlp, paired, swapped
from privfm.objectives.teacher import Snapshot

__all__ = ["Dino"]


class _Prototypes(nn.Module):
    """How much each row is like each of so many learnt directions."""

    def __init__(self, width: int, hidden: int, out: int, prototypes: int) -> None:
        super().__init__()
        self.embed = mlp(width, hidden, out)
        self.prototypes = nn.Linear(out, prototypes, bias=False)

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b prototypes"]:
        likeness: Tensor = self.prototypes(normalize(self.embed(features), dim=1))
        return likeness


class DinoNetwork(EmbeddingNetwork):
    """An embedding, its teacher, and the teacher's mean output on public images."""

    centre: Tensor

    def __init__(
        self,
        backbone: Backbone,
        project: nn.Module,
        public: Float[Tensor, "public c h w"],
        *,
        prototypes: int,
        centres: bool,
    ) -> None:
        super().__init__(backbone, project, public)
        self.centres = centres
        self.register_buffer("centre", torch.zeros(prototypes), persistent=False)
        self.teacher = Snapshot(self)

    def refresh(self) -> None:
        """Let the teacher know what the network knows, and find its centre on public images."""
        super().refresh()
        self.teacher.take(self)

    def _follow(self, projected: Float[Tensor, "public e"]) -> None:
        if self.centres:
            self.centre.copy_(projected.mean(0))


@dataclass(frozen=True)
class Dino(TwoGlances[DinoNetwork]):
    """Agree with a teacher on which prototypes a glance is like: DINO with a public centre and a released teacher.

    The original's teacher averages the weights of every step, and its centre is a running mean over batches, so that
    everyone's images are in everyone's loss. Here the teacher is the last released model, and its centre is its mean
    output on public images: both are constants until the next release, the same for all units. A unit's loss is a
    function of the unit, the network and these. Each view is glanced at twice; there are no smaller crops.

    Args:
        min_area, tone: how glances differ, see `Glances`.
        width: of the embeddings that are compared with prototypes.
        hidden: width of the layer before.
        prototypes: how many directions an embedding may be like.
        temperature, teacher_temperature: what outputs are divided by; the teacher's is the sharper.
        centre: `public`, or `none`, where sharpness alone has to keep outputs apart.
        public: how many public images there are.

    Raises:
        ValueError: a number is out of range, or the centre would be taken from the batch.

    Source: Caron et al. 2021, "Emerging properties in self-supervised vision transformers" (arXiv 2104.14294),
    algorithm 1.
    """

    name: ClassVar[str] = "dino"
    prototypes: int = 256
    temperature: float = 0.1
    teacher_temperature: float = 0.05
    centre: str = "public"
    public: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("prototypes", "temperature", "teacher_temperature", "public")
        if self.centre not in ("public", "none"):
            raise ValueError(f"centre={self.centre} is not public: use public, or none; a batch's couples its patients")

    @property
    def public_images(self) -> int:
        """The teacher's centre, and the whitening before the head, are moments of so many public images."""
        return self.public

    @property
    def _kind(self) -> type[DinoNetwork]:
        return DinoNetwork

    def _network(self, backbone: Backbone, public: Float[Tensor, "public c h w"]) -> DinoNetwork:
        project = _Prototypes(backbone.width, self.hidden, self.width, self.prototypes)
        return DinoNetwork(backbone, project, public, prototypes=self.prototypes, centres=self.centre == "public")

    def _compare(
        self, network: DinoNetwork, glances: Float[Tensor, "glances c h w"], projected: Float[Tensor, "glances e"]
    ) -> Float[Tensor, " views"]:
        taught = network.teacher.teach(network, glances)
        taught = ((taught - network.centre) / self.teacher_temperature).softmax(dim=1)
        return paired(-(swapped(taught) * log_softmax(projected / self.temperature, dim=1)).sum(dim=1))
