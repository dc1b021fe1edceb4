"""Where gradients are computed, and how many units fit there at a time."""

from __future__ import annotations

import torch

from privfm.errors import PlanError

__all__ = ["pick_device", "units_at_a_time"]

GRADIENT_BYTES = 1 << 30
"""Memory that per-image gradients may take at a time."""


def pick_device(name: str) -> torch.device:
    """Return the device that a plan names; "auto" takes a GPU when there is one.

    Raises:
        PlanError: a GPU was named that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PlanError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here; use auto or cpu")
    return device


def units_at_a_time(parameters: int, images: int, device: torch.device) -> int:
    """Return how many units, of `images` views each, have per-image gradients within the memory set aside.

    Example:
        >>> units_at_a_time(parameters=7_040, images=8, device=torch.device("cpu"))
        64
        >>> units_at_a_time(parameters=20_000_000, images=8, device=torch.device("cpu"))
        1
    """
    share = 8 if device.type == "cuda" else 1
    return max(1, min(64 * share, share * GRADIENT_BYTES // (4 * parameters * images)))
