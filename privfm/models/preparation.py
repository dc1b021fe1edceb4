"""What is changed inside a timm model so that gradients per image are well defined, and noised steps can train it."""

from __future__ import annotations

import torch
from torch import nn

from privfm.models.positions import sincos_positions

__all__ = ["prepare"]

_SMALL = 0.01


def prepare(network: nn.Module) -> tuple[str, ...]:
    """Switch off what is random or in place, give some parameters a better first value, and say so in a line each."""
    _quieten(network)
    return (*_settle_positions(network), *_settle_layer_scales(network))


def _quieten(network: nn.Module) -> None:
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(getattr(module, "drop_prob", None), float):
            module.drop_prob = 0.0  # type: ignore[assignment]


def _settle_positions(network: nn.Module) -> tuple[str, ...]:
    """Have a position embedding over a grid of patches begin with sines and cosines, which nothing has to learn."""
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    positions = getattr(network, "pos_embed", None)
    if grid is None or not isinstance(positions, nn.Parameter) or positions.dim() != 3:
        return ()
    waves = sincos_positions(grid[0], grid[1], positions.shape[-1])
    prefix = positions.shape[1] - len(waves)
    if prefix < 0:
        return ()
    with torch.no_grad():
        positions.zero_()
        positions[0, prefix:] = waves
    return ("pos_embed: starts as two-dimensional sines and cosines",)


def _settle_layer_scales(network: nn.Module) -> tuple[str, ...]:
    """Have layer scales begin with 1: at a millionth, noised steps could not wake the blocks behind them."""
    scales = [
        (name, value)
        for name, value in network.named_parameters()
        if name.rpartition(".")[2].startswith(("gamma", "ls")) and value.dim() <= 1 and _is_small(value)
    ]
    for _, value in scales:
        with torch.no_grad():
            value.fill_(1.0)
    return tuple(f"{name}: layer scale starts at 1" for name, _ in scales)


def _is_small(scale: nn.Parameter) -> bool:
    return bool((scale.abs() <= _SMALL).all()) and bool(scale.any())
