"""What objectives that compare embeddings share: a projection, public images, and two glances at every view."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from privfm.models import Backbone
from privfm.objectives.glances import Glances
from privfm.objectives.protocol import Network

__all__ = ["EmbeddingNetwork", "TwoGlances", "mlp", "moments", "paired", "swapped"]

_RIDGE = 0.05  # a direction that varies less than this much is no direction
_CHUNK = 256  # public images at a time, so that many of them need no more memory than a few


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Two layers with a layer norm between them, which normalises each row by itself where batch norm would not."""
    return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out))


class EmbeddingNetwork(Network):
    """A backbone, a whitening of its pooled features, and a projection of those.

    A fresh backbone's features vary in few directions, in which all images look alike; they are whitened before the
    projection, by the second moments of public images. Whitening keeps two views from agreeing by saying nothing
    (Ermolov et al. 2021, "Whitening for self-supervised representation learning"), which takes its moments from
    the batch; here they are constants.

    Guarantees: what is known of public images (moments, a centre, negatives) is computed by `refresh` of the weights
    that it finds, kept in buffers, and stored and sent nowhere: it is a function of a released model and of images
    that are nobody's.

    Args:
        project: the head.
        public: standardised images that are nobody's; with none, features are left as they are.
    """

    public: Tensor
    mean: Tensor
    directions: Tensor

    def __init__(self, backbone: Backbone, project: nn.Module, public: Float[Tensor, "public c h w"]) -> None:
        super().__init__(backbone)
        self.feature_width = backbone.width
        self.project = project
        self.register_buffer("public", public, persistent=False)
        self.register_buffer("mean", torch.zeros(backbone.width), persistent=False)
        self.register_buffer("directions", torch.eye(backbone.width), persistent=False)
        # Reading a stored model is one more way in which weights arrive.
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
        """Projections of images."""
        return self.head(self.backbone.features(images))

    def head(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        """Projections of pooled features."""
        projected: Tensor = self.project((features - self.mean) @ self.directions)
        return projected

    @torch.no_grad()
    def refresh(self) -> None:
        """Look at the public images with the weights of now."""
        if len(self.public):
            features = torch.cat([self.backbone.features(part) for part in torch.split(self.public, _CHUNK)])
            mean, directions = _whitening(features)
            self.mean.copy_(mean)
            self.directions.copy_(directions)
            self._follow(self.head(features))

    def _follow(self, projected: Float[Tensor, "public e"]) -> None:
        """Take from the public images' projections what the objective needs."""


def _refresh(network: nn.Module, _: object) -> None:
    if isinstance(network, EmbeddingNetwork):
        network.refresh()


def _whitening(features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """The mean, and the map after which standardised features vary alike in all directions, little ones apart.

    A direction of variance v comes out with v / (v + 0.05).

    >>> mean, directions = _whitening(torch.randn(200, 2) @ torch.tensor([[3.0, 1.0], [0.0, 0.1]]) + 5)
    >>> directions.shape
    torch.Size([2, 2])
    """
    mean = features.mean(0)
    scale = features.std(0, correction=0) + 1e-3
    standardised = (features - mean) / scale
    variances, axes = torch.linalg.eigh(standardised.T @ standardised / len(features))
    return mean, (axes / (variances.clamp_min(0) + _RIDGE).sqrt()) / scale[:, None] @ axes.T


N = TypeVar("N", bound=EmbeddingNetwork)


@dataclass(frozen=True)
class TwoGlances(Generic[N]):
    """An objective that compares two glances at the same view.

    Args:
        min_area, tone: how glances differ, see `Glances`.
        width: of the embeddings.
        hidden: width of the layer before.

    Raises:
        ValueError: a number is out of range.
    """

    min_area: float = 0.3
    tone: float = 0.5
    width: int = 64
    hidden: int = 256

    def __post_init__(self) -> None:
        self._glances  # noqa: B018  raises for numbers out of range
        self._check_positive("width", "hidden")

    @property
    def public_images(self) -> int:
        """None, unless the objective says otherwise."""
        return 0

    def build(self, backbone: Backbone, seed: int, public: Float[Tensor, "public c h w"] | None = None) -> Network:
        """The backbone with a freshly drawn head, which compares with a glance at each of the public images.

        Raises:
            ValueError: there are fewer public images than `public_images`.
        """
        seen = self._glance_at(backbone, seed, public)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._network(backbone, seen)
            noise = torch.randn(1, 1, *seen.shape[1:])
        network.refresh()
        network.fix_unused(self.unit_losses(network, noise, [np.random.default_rng(0)]).sum())
        return network

    def unit_losses(
        self,
        network: Network,
        views: Float[Tensor, "units views c h w"],
        rngs: Sequence[np.random.Generator],
    ) -> Float[Tensor, " units"]:
        """The mean over each unit's views of what two glances at the view cost; empty for no units."""
        if not rngs and not len(views):
            return views.new_zeros(0)
        return self.losses_and_features(network, views, rngs)[0]

    def losses_and_features(
        self,
        network: Network,
        views: Float[Tensor, "units views c h w"],
        rngs: Sequence[np.random.Generator],
    ) -> tuple[Float[Tensor, " units"], Float[Tensor, "units views d"]]:
        """The losses of at least one unit, and the pooled features of the first glance at each view."""
        if not isinstance(network, self._kind):
            raise TypeError(f"network={type(network).__name__} was not built by this objective")
        if len(rngs) != len(views):
            raise ValueError(f"len(rngs)={len(rngs)} must be the number of units {len(views)}")
        glances = self._glances.draw(views, rngs)
        features = network.backbone.features(glances)
        per_view = self._compare(network, glances, network.head(features))
        return per_view.reshape(views.shape[:2]).mean(dim=1), features[::2].reshape(*views.shape[:2], -1)

    @property
    @abstractmethod
    def _kind(self) -> type[N]: ...

    @abstractmethod
    def _network(self, backbone: Backbone, public: Float[Tensor, "public c h w"]) -> N: ...

    @abstractmethod
    def _compare(
        self, network: N, glances: Float[Tensor, "glances c h w"], projected: Float[Tensor, "glances e"]
    ) -> Float[Tensor, " views"]:
        """What each pair of glances costs; row i depends on glances 2 i and 2 i + 1 alone."""

    @property
    def _glances(self) -> Glances:
        return Glances(self.min_area, self.tone)

    def _glance_at(
        self, backbone: Backbone, seed: int, public: Float[Tensor, "public c h w"] | None
    ) -> Float[Tensor, "public c h w"]:
        """Public images as a unit's views are seen: else how sharp an image is would tell them apart."""
        spec, wanted = backbone.spec, self.public_images
        if wanted == 0:
            return torch.zeros(0, spec.channels, spec.image_size, spec.image_size)
        given = 0 if public is None else len(public)
        if public is None or given < wanted:
            raise ValueError(f"public={given} images; this objective compares with {wanted}")
        rngs = [np.random.default_rng([seed, place]) for place in range(wanted)]
        return self._glances.draw(public[:wanted, None], rngs)[::2]

    def _check_positive(self, *keys: str) -> None:
        for key in keys:
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)} must be positive")


def moments(rows: Float[Tensor, "n e"]) -> tuple[Float[Tensor, " e"], Float[Tensor, " e"]]:
    """Mean and deviation of each coordinate, the deviation away from zero."""
    return rows.mean(0), rows.std(0, correction=0) + 1e-3


def swapped(rows: Float[Tensor, "glances e"]) -> Float[Tensor, "glances e"]:
    """Each glance's row in the place of the other glance's at the same view."""
    return rows.reshape(-1, 2, rows.shape[-1]).flip(1).flatten(0, 1)


def paired(costs: Float[Tensor, " glances"]) -> Float[Tensor, " views"]:
    """The mean over the two glances at each view."""
    return costs.reshape(-1, 2).mean(dim=1)
