"""A network of several kinds of parameters for the test bench, and what clipping must make of it by autograd alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["GIVEN", "Pulls", "Stack", "autograd_of", "clipped_sum"]

TOKENS, SEEN, WIDTH, GIVEN = 4, 16, 24, 3
"""So that the first layer's norms come from products of tokens and the second's are written out."""


class Stack(nn.Module):
    """Two layers with biases and a norm between them, for every token; the second is called once or several times."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(SEEN, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, GIVEN)
        self.calls = calls
        generator = torch.Generator().manual_seed(8)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.first(tokens))
        return torch.stack([self.last(hidden * (1 + call)) for call in range(self.calls)]).sum(dim=0)


class Pulls:
    """A loss of each unit: what the network gives for its tokens, times the unit's row."""

    def __init__(self, rows: Float[Tensor, "units given"]) -> None:
        self.rows = rows
        self.tokens = torch.randn(64, TOKENS, SEEN, generator=torch.Generator().manual_seed(9))

    def unit_losses(
        self, network: nn.Module, views: Tensor, rngs: list[np.random.Generator]
    ) -> Float[Tensor, " units"]:
        places = views.flatten(1)[:, 0].abs().long() % len(self.rows)
        losses: Tensor = (network(self.tokens[places % len(self.tokens)]) * self.rows[places][:, None]).sum(dim=(1, 2))
        return losses


def autograd_of(network: nn.Module, objective: Pulls, unit: int) -> Float[Tensor, " parameters"]:
    """Return one unit's gradient, of its loss alone, in double precision."""
    view = torch.full((1, 1, 1, 1, 1), float(unit))
    loss = objective.unit_losses(network, view, [np.random.default_rng(unit)]).sum()
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))]).double()


def clipped_sum(gradients: Iterable[Float[Tensor, " parameters"]], clip_norm: float) -> Float[Tensor, " parameters"]:
    """Return the sum of gradients scaled down to the clip norm, each whole; one that is not finite adds nothing."""
    total = torch.zeros(1, dtype=torch.float64)
    for gradient in gradients:
        if bool(torch.isfinite(gradient).all()):
            total = total + gradient * min(1.0, clip_norm / max(float(gradient.norm()), 1e-30))
    return total
