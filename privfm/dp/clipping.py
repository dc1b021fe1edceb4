"""Clipped sums of per-unit gradients, from one backward pass.

A unit is a patient: all views drawn of their images. Its gradient is the gradient of one scalar, the mean loss over
those views, and is clipped once (Charles et al. 2024, user-level DP-SGD with per-user averaging).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from privfm.errors import ModelError
from privfm.gradients import Share, unit_shares

__all__ = ["ClippedSum", "ClippingEngine", "check_clippable", "gradient_norms"]


TRUSTED = 1e-3
"""How far off a squared norm may be, relatively, by the bound on rounding."""

LARGEST = 1e30
"""A unit with a longer gradient counts as one that is not finite: its factor would be too small a number."""


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
    """Raise ModelError unless each unit's gradient is autograd's own gradient of its loss, for every parameter.

    A layer that reads a weight behind its module's back escapes the hooks; its share of the gradient would be missing
    from what is learnt. To be asked once, of random pixels: whether it fails must not depend on patients.

    Args:
        losses: called more than once; must give the same every time.
    """
    parameters = _trainable(network)
    rows = [share.rows().values for share in unit_shares(network, losses, units)]
    for unit in range(units):
        gradients = torch.autograd.grad(losses()[unit], parameters, allow_unused=True)
        for own, row in zip(gradients, rows, strict=True):
            expected = torch.zeros_like(row[unit]) if own is None else own.flatten()
            if (row[unit] - expected).norm() > 1e-3 * row.norm(dim=1).sum() / units + 1e-6:
                raise ModelError("gradients of one patient cannot be told from another's; choose another backbone")


def gradient_norms(
    network: nn.Module, losses: Callable[[], Float[Tensor, " units"]], units: int
) -> Float[Tensor, " units"]:
    """Return the L2 norm of each unit's gradient. Not private: for public images alone."""
    return _norms(unit_shares(network, losses, units))[0].float()


def _norms(shares: Sequence[Share], least: float = 0.0) -> tuple[Float[Tensor, " units"], Bool[Tensor, " units"]]:
    """Norms over all parameters together in double precision, and whose gradients have to be written out.

    A squared norm that rounding might have put off by more than `TRUSTED` of it is taken of the gradient written out.
    Then what is added has to be that, too. Whether it is, is decided for each unit alone.

    Args:
        least: no squared norm need be righter than `TRUSTED` of this one's.
    """
    found = [share.squared_norms() for share in shares]
    squared, off = (torch.stack(list(parts)).sum(dim=0) for parts in zip(*found, strict=True))
    doubtful = off > TRUSTED * squared.clamp(min=least**2)
    if bool(doubtful.any()):
        squared[doubtful] = torch.stack([share.rows(doubtful).squared_norms()[0] for share in shares]).sum(dim=0)
    return squared.sqrt(), doubtful


def _weighted_sum(
    share: Share, factors: Float[Tensor, " units"], doubtful: Bool[Tensor, " units"]
) -> Float[Tensor, " numbers"]:
    if not bool(doubtful.any()):
        return share.weighted_sum(factors)
    written_out = share.rows(doubtful).weighted_sum(factors[doubtful])
    return share.weighted_sum(torch.where(doubtful, 0.0, factors)) + written_out


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
        self._parameters = _trainable(network)
        self._sums: list[Tensor] = []  # one a parameter, once something was added
        self._whole = True

    def add(self, losses: Callable[[], Float[Tensor, " units"]], units: int, counted: int | None = None) -> None:
        """Add the clipped gradients of `units` units, never split over two calls. A non-finite one counts as zero.

        Args:
            counted: how many of them, the first, are added; the others only make up the number, because arithmetic may
                depend on it, and one unit more must not change what the others add.

        Raises:
            RuntimeError: an earlier call was cut short, so that some of its units were added in part.
        """
        self._check_whole()
        if not units:
            return
        shares = unit_shares(self._network, lambda: self._in_precision(losses), units)
        norms, doubtful = _norms(shares, self._clip_norm)
        real = torch.arange(units, device=norms.device) < (units if counted is None else counted)
        finite = norms < LARGEST
        self._whole = False
        self._units += int(real.sum())
        self._within += int((real & (norms <= self._clip_norm)).sum())
        if not bool(finite.all()):
            shares, norms = [share.only(finite) for share in shares], torch.where(finite, norms, 0.0)
        factors = torch.where(real, self._clip_norm / norms.clamp(min=self._clip_norm), 0.0).float()
        before, self._sums = self._sums, []
        while shares:  # each is let go of once it is added, for they are as large as the activations
            part = _weighted_sum(shares.pop(0), factors, doubtful)
            self._sums.append(before.pop(0).add_(part) if before else part)
        self._whole = True

    def _check_whole(self) -> None:
        if not self._whole:
            raise RuntimeError("a batch was added in part only; begin the step again with a new engine")

    def finish(self) -> ClippedSum:
        """Return the sum so far and start anew; zero when nothing was added, as for an empty draw.

        Raises:
            RuntimeError: a batch was added in part.
        """
        self._check_whole()
        sums = self._sums or [torch.zeros_like(parameter).flatten() for parameter in self._parameters]
        done = ClippedSum(torch.cat(sums).detach(), self._clip_norm, self._units, self._within)
        self._sums, self._units, self._within = [], 0, 0
        return done

    def _in_precision(self, losses: Callable[[], Float[Tensor, " units"]]) -> Float[Tensor, " units"]:
        """The forward pass alone: autocast would reach into norms and sums too."""
        if self._precision is torch.float32:
            return losses()
        with torch.autocast(self._parameters[0].device.type, dtype=self._precision, cache_enabled=False):
            return losses()
