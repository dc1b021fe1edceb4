"""Per-sample gradient rules for timm's norms and layer scales and for convolutions, in the form Opacus registers.

Opacus looks rules up by exact type, so timm's subclasses of torch's norms would fall back to its slower functional
engine. Its rule for `Conv2d` reads activations by strides that assume a contiguous tensor: after a permutation (as in
ConvNeXt) its gradients are silently wrong, and with them every clip norm. It also expands grouped convolutions to
full ones first. Importing this module registers rules that are right in both cases; each returns one gradient per
sample, summed over positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from opacus.grad_sample.utils import register_grad_sampler
from torch import Tensor, nn
from torch.nn import functional

from privfm.models.torchvision_shim import timm

__all__ = ["RULES", "register_rules"]

Rule = Callable[[Any, list[Tensor], Tensor], dict[Tensor, Tensor]]


def conv2d(layer: nn.Conv2d, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Gradients of a convolution, grouped, strided, dilated or padded as it may be."""
    samples: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        columns = _columns(layer, activations[0].to(backprops.dtype))
        outputs = backprops.reshape(len(backprops), layer.groups, -1, columns.shape[-1])
        gradient = torch.einsum("ngol,ngil->ngoi", outputs, columns)
        samples[layer.weight] = gradient.reshape(len(backprops), *layer.weight.shape)
    if layer.bias is not None and layer.bias.requires_grad:
        samples[layer.bias] = backprops.sum(dim=(2, 3))
    return samples


def layer_norm(layer: nn.LayerNorm, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Gradients of a layer norm over the last dimensions."""
    normalised = functional.layer_norm(activations[0], layer.normalized_shape, eps=layer.eps)
    return _affine(layer, normalised, backprops, tuple(range(1, backprops.dim() - len(layer.normalized_shape))))


def rms_norm(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Gradients of the scale of a norm that does not centre."""
    normalised = functional.rms_norm(activations[0], layer.normalized_shape, eps=layer.eps)
    product = normalised * backprops
    return {layer.weight: _summed(product, tuple(range(1, product.dim() - len(layer.normalized_shape))))}


def layer_norm_2d(layer: nn.LayerNorm, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Gradients of a layer norm over the channels of a map."""
    last = activations[0].movedim(1, -1)
    normalised = functional.layer_norm(last, layer.normalized_shape, eps=layer.eps).movedim(-1, 1)
    return _affine(layer, normalised, backprops, (2, 3))


def group_norm(layer: nn.GroupNorm, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Gradients of a group norm; channels are dimension 1."""
    normalised = functional.group_norm(activations[0], layer.num_groups, eps=layer.eps)
    return _affine(layer, normalised, backprops, tuple(range(2, backprops.dim())))


def layer_scale(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Gradients of a factor per channel, the last dimension."""
    product = activations[0] * backprops
    return {layer.gamma: _summed(product, tuple(range(1, product.dim() - 1)))}


#: The rule for each layer type, looked up by exact type.
RULES: tuple[tuple[type[nn.Module], Rule], ...] = (
    (nn.Conv2d, conv2d),
    (nn.LayerNorm, layer_norm),
    (nn.GroupNorm, group_norm),
    (nn.RMSNorm, rms_norm),
    (timm.layers.RmsNorm, rms_norm),
    (timm.layers.LayerNorm, layer_norm),
    (timm.layers.LayerNormFp32, layer_norm),
    (timm.layers.LayerNorm2d, layer_norm_2d),
    (timm.layers.LayerNorm2dFp32, layer_norm_2d),
    (timm.layers.GroupNorm, group_norm),
    (timm.layers.GroupNorm1, group_norm),
    (timm.models.vision_transformer.LayerScale, layer_scale),
)


def register_rules() -> None:
    """Make Opacus use these rules; doing it twice changes nothing."""
    for kind, rule in RULES:
        register_grad_sampler(kind)(rule)


def _affine(
    layer: nn.LayerNorm | nn.GroupNorm, normalised: Tensor, backprops: Tensor, summed: tuple[int, ...]
) -> dict[Tensor, Tensor]:
    """Gradients of a scale and a shift, per sample in dimension 0; `summed` are the dimensions they do not have."""
    samples: dict[Tensor, Tensor] = {}
    if layer.weight is not None and layer.weight.requires_grad:
        samples[layer.weight] = _summed(normalised * backprops, summed)
    if layer.bias is not None and layer.bias.requires_grad:
        samples[layer.bias] = _summed(backprops, summed)
    return samples


def _summed(values: Tensor, dimensions: tuple[int, ...]) -> Tensor:
    return values.sum(dim=dimensions) if dimensions else values  # an empty tuple would mean all dimensions


def _columns(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """What each output position of a convolution sees: [n, groups, inputs * kernel, positions]."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(images, layer._reversed_padding_repeated_twice, mode=mode)
    columns = functional.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    return columns.reshape(len(columns), layer.groups, -1, columns.shape[-1])
