"""Clipped sums of per-unit gradients, from one backward pass.

A unit is a patient: all views drawn of their images. Its gradient is the gradient of one scalar, the mean loss over
those views, and is clipped once (Charles et al. 2024, user-level DP-SGD with per-user averaging).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from privfm.errors import ModelError
from privfm.gradients import Share, unit_shares

__all__ = ["ClippedSum", "ClippingEngine", "check_clippable", "gradient_norms"]


@dataclass(frozen=True)
class ClippedSum:
    """A sum of unit gradients of which each has an L2 norm of at most `clip_norm`.

    Adding or removing one unit moves `vector` by at most `clip_norm` in L2, `units` by one, and `within` by at most
    one: the sensitivities that the noise relies on. Only `ClippingEngine` makes one. It is as secret as the units.

    Args:
        units: how many were added.
        within: how many of them had a gradient of at most `clip_norm`.
    """

    vector: Float[Tensor, " parameters"] = field(repr=False)
    clip_norm: float
    units: int = field(default=0, repr=False)
    within: int = field(default=0, repr=False)


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def check_clippable(network: nn.Module, losses: Callable[[], Float[Tensor, " units"]], units: int) -> None:
    """Raise ModelError unless the sum of unit gradients is autograd's own gradient, for every parameter.

    A layer that reads a weight behind its module's back escapes the hooks; its share of the gradient would be missing
    from what is learnt. To be asked once, of random pixels: whether it fails must not depend on patients.

    Args:
        losses: called twice; must give the same both times.
    """
    parameters = _trainable(network)
    rows = [share.rows().values for share in unit_shares(network, losses, units)]
    gradients = torch.autograd.grad(losses().sum(), parameters, allow_unused=True)
    for whole, row in zip(gradients, rows, strict=True):
        if whole is None or (row.sum(dim=0) - whole.flatten()).norm() > 1e-3 * row.norm(dim=1).sum() + 1e-6:
            raise ModelError("per-unit gradients do not add up to the whole gradient; choose another backbone")


def gradient_norms(
    network: nn.Module, losses: Callable[[], Float[Tensor, " units"]], units: int
) -> Float[Tensor, " units"]:
    """Return the L2 norm of each unit's gradient. Not private: for public images alone."""
    return _norms(unit_shares(network, losses, units)).float()


def _norms(shares: Sequence[Share]) -> Float[Tensor, " units"]:
    """Over all parameters together, in double precision."""
    return torch.stack([share.squared_norms() for share in shares]).sum(dim=0).sqrt()


class ClippingEngine:
    """Sums clipped unit gradients over micro-batches of whole units.

    Args:
        network: in training mode; frozen parameters cost nothing.
        clip_norm: L2 bound on one unit's gradient, over all trainable parameters together.
        precision: in which layers compute, torch.bfloat16 by autocast. Norms and sums are in single precision or
            better, of the gradients as they were computed, so that the bound holds either way.
    """

    def __init__(self, network: nn.Module, clip_norm: float, precision: torch.dtype = torch.float32) -> None:
        if not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm}; it must be positive")
        self._network = network
        self._clip_norm = clip_norm
        self._precision = precision
        self._units = self._within = 0
        self._sum = torch.zeros_like(parameters_to_vector(_trainable(network))).detach()

    def add(self, losses: Callable[[], Float[Tensor, " units"]], units: int) -> None:
        """Add the clipped gradients of `units` units, never split over two calls. A non-finite one counts as zero."""
        if not units:
            return
        shares = unit_shares(self._network, lambda: self._in_precision(losses), units)
        norms = _norms(shares)
        finite = torch.isfinite(norms)
        self._units += units
        self._within += int((norms <= self._clip_norm).sum())
        if not bool(finite.all()):
            shares, norms = [share.only(finite) for share in shares], torch.where(finite, norms, 0.0)
        factors = (self._clip_norm / norms.clamp(min=self._clip_norm)).float()
        start = 0
        while shares:  # each is let go of once it is added, for they are as large as the activations
            part = shares.pop(0).weighted_sum(factors)
            self._sum[start : start + len(part)] += part
            start += len(part)

    def finish(self) -> ClippedSum:
        """Return the sum so far and start anew; zero when nothing was added, as for an empty draw."""
        done = ClippedSum(self._sum, self._clip_norm, self._units, self._within)
        self._sum, self._units, self._within = torch.zeros_like(self._sum), 0, 0
        return done

    def _in_precision(self, losses: Callable[[], Float[Tensor, " units"]]) -> Float[Tensor, " units"]:
        """The forward pass alone: autocast would reach into norms and sums too."""
        if self._precision is torch.float32:
            return losses()
        with torch.autocast(self._sum.device.type, dtype=self._precision, cache_enabled=False):
            return losses()
