"""Clipped sums of per-unit gradients, on Opacus's grad-sample hooks.

A unit is a patient: all views drawn of their images. Its gradient is the gradient of one scalar, the mean loss over
those views, and is clipped once (Charles et al. 2024, user-level DP-SGD with per-user averaging).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from privfm.errors import ModelError

__all__ = ["ClippedSum", "ClippingEngine", "check_clippable", "clip", "gradient_norms", "per_unit_gradients"]


@dataclass(frozen=True)
class ClippedSum:
    """A sum of unit gradients of which each has an L2 norm of at most `clip_norm`.

    Adding or removing one unit moves `vector` by at most `clip_norm` in L2: the sensitivity that the noise relies on.
    Only `ClippingEngine` makes one.
    """

    vector: Float[Tensor, " parameters"]
    clip_norm: float


@contextmanager
def _hooks(network: nn.Module) -> Iterator[None]:
    """Have every backward pass leave `grad_sample`, one row an image, on the trainable parameters."""
    hooks = GradSampleHooks(network, batch_first=True, loss_reduction="sum", strict=False)
    try:
        with warnings.catch_warnings():
            # The first layer's input needs no gradient, which torch remarks on and which is as it should be.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        hooks.cleanup()


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _rows(parameter: nn.Parameter, units: int) -> Float[Tensor, "units flat"]:
    """Sum a parameter's rows over the views of a unit (the loss already holds the mean's 1/views)."""
    rows = parameter.grad_sample  # type: ignore[attr-defined]
    if not isinstance(rows, Tensor) or rows.shape[0] % units:
        raise ModelError("a parameter has no gradient per image; freeze it or choose another backbone")
    return rows.reshape(units, rows.shape[0] // units, -1).sum(dim=1)


def check_clippable(network: nn.Module, losses: Callable[[], Float[Tensor, " units"]], units: int) -> None:
    """Raise ModelError unless the sum of unit gradients is autograd's own gradient, for every parameter.

    A layer that reads a weight behind its module's back escapes the hooks; its share of the gradient would be missing
    from what is learnt. To be asked once, of random pixels: whether it fails must not depend on patients.
    """
    parameters = _trainable(network)
    with _hooks(network):
        rows = _unit_rows(network, losses, units)
    for parameter, row in zip(parameters, rows, strict=True):
        whole = parameter.grad
        if whole is None or (row.sum(dim=0) - whole.flatten()).norm() > 1e-3 * row.norm(dim=1).sum() + 1e-6:
            raise ModelError("per-unit gradients do not add up to the whole gradient; choose another backbone")
    _forget(parameters)


def per_unit_gradients(
    network: nn.Module, losses: Callable[[], Float[Tensor, " units"]], units: int
) -> Float[Tensor, "units parameters"]:
    """Return each unit's gradient over the trainable parameters, in `network.parameters()` order.

    Preconditions: `network` carries Opacus's hooks and is in training mode; `losses` runs it with the images of a unit
    next to each other along the batch, the same number for every unit.
    """
    gradients = torch.cat(_unit_rows(network, losses, units), dim=1)
    _forget(_trainable(network))
    return gradients


def _unit_rows(network: nn.Module, losses: Callable[[], Float[Tensor, " units"]], units: int) -> list[Tensor]:
    parameters = _trainable(network)
    _forget(parameters)
    loss: Tensor = losses()
    if loss.shape != (units,):
        raise ValueError(f"losses have shape {tuple(loss.shape)}; one value for each of {units} units is needed")
    torch.autograd.backward(loss.sum())
    return [_rows(parameter, units) for parameter in parameters]


def _forget(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
        parameter.grad_sample = None  # type: ignore[attr-defined]


def gradient_norms(
    network: nn.Module, losses: Callable[[], Float[Tensor, " units"]], units: int
) -> Float[Tensor, " units"]:
    """Return the L2 norm of each unit's gradient. Not private: for public images alone."""
    with _hooks(network):
        norms: Tensor = torch.linalg.vector_norm(per_unit_gradients(network, losses, units), dim=1)
    return norms


class ClippingEngine:
    """Sums clipped unit gradients over micro-batches of whole units.

    Args:
        network: in training mode; frozen parameters cost nothing.
        clip_norm: L2 bound on one unit's gradient, over all trainable parameters together.
    """

    def __init__(self, network: nn.Module, clip_norm: float) -> None:
        if not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm}; it must be positive")
        self._network = network
        self._clip_norm = clip_norm
        self._sum = torch.zeros_like(parameters_to_vector(_trainable(network))).detach()

    def add(self, losses: Callable[[], Float[Tensor, " units"]], units: int) -> None:
        """Add the clipped gradients of `units` units, never split over two calls. A non-finite one counts as zero."""
        with _hooks(self._network):
            gradients = per_unit_gradients(self._network, losses, units)
        self._sum += clip(gradients, self._clip_norm).sum(dim=0)

    def finish(self) -> ClippedSum:
        """Return the sum so far and start anew; zero when nothing was added, as for an empty draw."""
        total, self._sum = self._sum, torch.zeros_like(self._sum)
        return ClippedSum(total, self._clip_norm)


def clip(gradients: Float[Tensor, "units parameters"], clip_norm: float) -> Float[Tensor, "units parameters"]:
    """Return every row scaled to an L2 norm of at most `clip_norm`; rows that are not finite become zero.

    Source: Abadi et al. 2016, algorithm 1, with the row as the unit.
    """
    norms = torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64, keepdim=True)
    finite = torch.isfinite(norms)
    factors = torch.where(finite, (clip_norm / norms.clamp(min=clip_norm)), 0.0).to(gradients.dtype)
    # 0 * NaN is NaN, so a bad row is replaced rather than scaled.
    return torch.where(finite, gradients * factors, 0.0)
