"""Which parameters train: fewer of them means less noise."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from privfm.errors import PlanError
from privfm.models.backbone import Backbone
from privfm.models.lora import adapter_names
from privfm.models.torchvision_shim import timm

__all__ = ["count_trainable", "set_trainable"]

_LAST = re.compile(r"last-([1-9]\d*)")
_BACKBONE = "backbone."


def set_trainable(network: nn.Module, which: str, *, train_head: bool | None = None) -> int:
    """Choose the parameters that train; returns how many numbers they hold.

    * `all`: everything that can train.
    * `last-K`: the last K blocks of the backbone and the norm behind them.
    * `norm-bias`: scales and shifts of norms, and biases of all layers.
    * `lora`: the adapters that `add_adapters` has added.

    The head (an objective's decoder) trains with `all`. With the others it stays as it is, since a decoder that a
    public start has already trained needs no share of the gradient, and under differential privacy would bring as
    much noise as the backbone. A head that nothing has trained must be told to train.

    Args:
        network: a backbone with its head, with attributes `backbone` and `fixed` (names that never train).
        train_head: True or False overrides the choice above.

    Raises:
        PlanError: `which` is none of these, or the backbone has no K blocks or no known order of blocks.
    """
    backbone, fixed = _parts(network)
    chosen = _chosen(backbone, which)
    with_head = which == "all" if train_head is None else train_head
    for name, value in network.named_parameters():
        wanted = name.removeprefix(_BACKBONE) in chosen if name.startswith(_BACKBONE) else with_head
        value.requires_grad_(wanted and name not in fixed)
    return count_trainable(network)


def count_trainable(network: nn.Module) -> int:
    """How many numbers train."""
    return sum(value.numel() for value in network.parameters() if value.requires_grad)


def _parts(network: nn.Module) -> tuple[Backbone, frozenset[str]]:
    backbone, fixed = getattr(network, "backbone", None), getattr(network, "fixed", None)
    if not isinstance(backbone, Backbone) or not isinstance(fixed, frozenset):
        raise TypeError(f"network={type(network).__name__} must have a backbone and the names that are fixed")
    return backbone, fixed


def _chosen(backbone: Backbone, which: str) -> set[str]:
    shapes = {name: value.dim() for name, value in backbone.named_parameters()}
    last = _LAST.fullmatch(which)
    if last:
        return _last_blocks(backbone, int(last[1]))
    if which == "all":
        return set(shapes)
    if which == "norm-bias":
        return {name for name, dimensions in shapes.items() if dimensions <= 1}
    if which == "lora":
        return adapter_names(backbone)
    raise PlanError(f"trainable = {which}: use all, norm-bias, lora or last-K with K = 1, 2, ...")


def _last_blocks(backbone: Backbone, count: int) -> set[str]:
    """Names in the last blocks, in timm's own order of layers; a norm behind the last block belongs to it."""
    key, name = f"trainable = last-{count}", backbone.spec.name
    matcher: Any = getattr(backbone.timm, "group_matcher", None)
    if matcher is None:
        raise PlanError(f"{key}: {name} does not say which blocks are last; use norm-bias")
    layers: dict[int, list[str]] = timm.models.group_parameters(backbone.timm, matcher(coarse=False))
    shapes = {key: value.dim() for key, value in backbone.timm.named_parameters()}
    blocks: list[set[str]] = []
    for _, names in sorted(layers.items()):
        if not blocks or any(shapes[name] > 1 for name in names):
            blocks.append(set())
        blocks[-1].update(f"timm.{name}" for name in names)
    if count >= len(blocks):  # the first is the stem
        raise PlanError(f"{key}: {name} has {len(blocks) - 1} blocks; use last-{len(blocks) - 1} or all")
    return set().union(*blocks[-count:])
