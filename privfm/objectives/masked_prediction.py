"""What objectives that hide patches and predict them share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from privfm.models import Backbone
from privfm.objectives.masking import draw_orders, patchify, unpatchify
from privfm.objectives.pixel_masking import PixelMaskingNetwork
from privfm.objectives.protocol import Network
from privfm.objectives.token_dropping import TokenDroppingNetwork

__all__ = ["MaskedNetwork", "MaskedPrediction"]

MaskedNetwork = TokenDroppingNetwork | PixelMaskingNetwork


@dataclass(frozen=True)
class MaskedPrediction:
    """Hide patches of every view, predict them from the rest of that view.

    Guarantees: nothing is shared between images. Masks come from the unit's own generator, the error of a view is
    the mean over its own masked patches, and every view hides the same number of them.

    Args:
        mask_ratio: share of the patches that is hidden, in (0, 1).

    Raises:
        ValueError: `mask_ratio` is not in (0, 1).
    """

    mask_ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio} must lie between 0 and 1")

    @property
    def public_images(self) -> int:
        """None: an image is compared with itself alone."""
        return 0

    def build(self, backbone: Backbone, seed: int, public: Float[Tensor, "public c h w"] | None = None) -> Network:
        """The backbone with a freshly drawn decoder."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._network(backbone)
            spec = backbone.spec
            noise = torch.randn(1, 1, spec.channels, spec.image_size, spec.image_size)
        network.fix_unused(self.unit_losses(network, noise, [np.random.default_rng(0)]).sum())
        return network

    def unit_losses(
        self,
        network: Network,
        views: Float[Tensor, "units views c h w"],
        rngs: Sequence[np.random.Generator],
    ) -> Float[Tensor, " units"]:
        """The mean over each unit's views of the error on the view's masked patches; empty for no units."""
        if not rngs and not len(views):
            return views.new_zeros(0)
        return self.losses_and_features(network, views, rngs)[0]

    def losses_and_features(
        self,
        network: Network,
        views: Float[Tensor, "units views c h w"],
        rngs: Sequence[np.random.Generator],
    ) -> tuple[Float[Tensor, " units"], Float[Tensor, "units views d"]]:
        """The losses of at least one unit, and the pooled features of what the encoder saw of each view."""
        masked = _masked(network)
        if len(rngs) != len(views):
            raise ValueError(f"len(rngs)={len(rngs)} must be the number of units {len(views)}")
        order = draw_orders(rngs, views.shape[1], masked.patches).to(views.device)
        images = views.flatten(0, 1)
        keep, hidden = self._split(order)
        known = masked.encode(images, keep)
        errors = self._errors(masked.decode(known, keep), patchify(images, masked.patch)).gather(1, hidden)
        per_view: Tensor = errors.mean(dim=1)
        pooled: Tensor = known.mean(dim=1)
        return per_view.reshape(views.shape[:2]).mean(dim=1), pooled.reshape(*views.shape[:2], -1)

    @torch.no_grad()
    def reconstruct(
        self, network: Network, images: Float[Tensor, "b c h w"], rng: np.random.Generator
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """The images with zeros where they were masked, and with predictions there."""
        masked = _masked(network)
        order = draw_orders([rng], len(images), masked.patches).to(images.device)
        keep, hidden = self._split(order)
        patches = patchify(images, masked.patch)
        guesses = self._pixels(masked(images, keep), patches)
        is_hidden = torch.zeros_like(order, dtype=torch.bool).scatter(1, hidden, True).unsqueeze(-1)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        seen = unpatchify(patches.masked_fill(is_hidden, 0.0), masked.patch, shape)
        return seen, unpatchify(torch.where(is_hidden, guesses, patches), masked.patch, shape)

    @abstractmethod
    def _network(self, backbone: Backbone) -> MaskedNetwork: ...

    @abstractmethod
    def _errors(
        self, predicted: Float[Tensor, "b patches pixels"], patches: Float[Tensor, "b patches pixels"]
    ) -> Float[Tensor, "b patches"]:
        """How far off each patch's prediction is."""

    @abstractmethod
    def _pixels(
        self, predicted: Float[Tensor, "b patches pixels"], patches: Float[Tensor, "b patches pixels"]
    ) -> Float[Tensor, "b patches pixels"]:
        """The predictions as pixels of the image."""

    def _split(self, order: Int[Tensor, "b patches"]) -> tuple[Int[Tensor, "b kept"], Int[Tensor, "b hidden"]]:
        patches = order.shape[1]
        kept = min(max(round(patches * (1 - self.mask_ratio)), 1), patches - 1)
        return order[:, :kept], order[:, kept:]


def _masked(network: Network) -> MaskedNetwork:
    if not isinstance(network, MaskedNetwork):
        raise TypeError(f"network={type(network).__name__} was not built by this objective")
    return network
