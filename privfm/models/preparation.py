"""What is changed inside a timm model so that gradients per image are well defined and cheap to take."""

from __future__ import annotations

import torch
from torch import nn

from privfm.models.positions import sincos_positions

__all__ = ["prepare"]


def prepare(network: nn.Module) -> tuple[str, ...]:
    """Switch off what is random or in place, fix parameters that no layer owns, and say so in one line each.

    A parameter that sits on a module with further parametrised modules below it (a position embedding, a class
    token, a layer scale, a table of relative positions) would make hooks treat the whole module as one layer. It
    keeps its value and its place in the state dict, and never trains.
    """
    _quieten(network)
    return _fix_loose_parameters(network)


def _quieten(network: nn.Module) -> None:
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(getattr(module, "drop_prob", None), float):
            module.drop_prob = 0.0  # type: ignore[assignment]


def _fix_loose_parameters(network: nn.Module) -> tuple[str, ...]:
    notes: dict[str, str] = {}
    for module in network.modules():
        own = dict(module.named_parameters(recurse=False))
        if not own or not any(True for child in module.children() for _ in child.parameters()):
            continue
        for name, parameter in own.items():
            parameter.requires_grad_(False)
            notes[name] = f"{name}: {_settle(module, name, parameter)}"
    return tuple(notes.values())


def _settle(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    """Give a fixed parameter a sensible value; says which."""
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    with torch.no_grad():
        if name == "pos_embed" and grid is not None and parameter.dim() == 3:
            positions = sincos_positions(grid[0], grid[1], parameter.shape[-1])
            prefix = parameter.shape[1] - len(positions)
            if prefix >= 0:
                parameter.zero_()
                parameter[0, prefix:] = positions
                return "fixed to two-dimensional sine-cosine positions"
        if name.startswith("gamma"):
            parameter.fill_(1.0)
            return "layer scale fixed to 1"
    return "fixed at its first value"
