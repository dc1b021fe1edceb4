"""A teacher that is no secret: the weights of the last model that was written into the network."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Snapshot"]


class Snapshot(nn.Module):
    """A copy of a network's weights as buffers: no optimiser moves them, and they are stored and sent nowhere.

    Guarantees: what it holds is what the network held when `take` was last called. Nothing else is remembered, so
    that a teacher is as private as the model that it is taken of. The momentum teachers of BYOL and DINO average the
    weights of every step instead; where steps see raw gradients, such an average is a release that nothing accounts.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names = tuple(name for name, _ in network.named_parameters())
        for place, (_, value) in enumerate(network.named_parameters()):
            self.register_buffer(f"weight_{place}", value.detach().clone(), persistent=False)

    @torch.no_grad()
    def take(self, network: nn.Module) -> None:
        """Copy the network's weights as they are now."""
        weights = dict(network.named_parameters())
        for place, name in enumerate(self._names):
            self.get_buffer(f"weight_{place}").copy_(weights[name])

    @torch.no_grad()
    def teach(self, network: nn.Module, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
        """What the network would say of the images with the copied weights; no gradient flows."""
        weights = {name: self.get_buffer(f"weight_{place}") for place, name in enumerate(self._names)}
        return cast(Tensor, functional_call(network, weights, (images,)))
