"""Whether a prepared model treats every image alone and yields its gradient per image, found out by trying.

Names of layers tell much; these checks catch the rest. They run in double precision on random images, in training
mode, and compare what hooks collect with one backward pass per image.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from privfm.errors import ModelError
from privfm.gradients import collected_shares
from privfm.models.creation import MODEL_FAULTS, first_line

__all__ = ["Verdict", "examine"]

_TOLERANCE = 1e-7  # double precision; rounding alone stays below 1e-10
_IMAGES = 2


@dataclass(frozen=True)
class Verdict:
    """What has to be done to a model so that it is sound.

    Attributes:
        unreachable: parameters whose gradient per image is not understood; they must not train.
    """

    unreachable: frozenset[str]


def examine(network: nn.Module, shape: tuple[int, int, int], name: str) -> Verdict:
    """What must not train in this network.

    Args:
        network: maps images to one feature vector each, by way of the timm model in its attribute `timm`.
        shape: (channels, height, width) of an image.
        name: of the backbone, for messages.

    Raises:
        ModelError: images influence each other, the model draws random numbers or changes its own state, or its
            gradients per image cannot be collected.
    """
    probe = copy.deepcopy(network).double().train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # weights that start at zero would hide what lies before them
        for value in probe.parameters():
            value.add_(torch.randn(value.shape, dtype=torch.float64, generator=generator), alpha=0.1)
    images = torch.randn(_IMAGES, *shape, dtype=torch.float64, generator=generator)
    try:
        _check_alone(probe, images, name)
        unreachable = left = _disagreements(probe, images)
        if unreachable:
            _give_up(probe, unreachable, name)
            left = _disagreements(probe, images)
    except MODEL_FAULTS as error:
        raise ModelError(f"backbone {name}: gradients per image fail: {first_line(error)}") from error
    if left:
        raise ModelError(
            f"backbone {name}: the gradient per image of {sorted(left)[0]} is not the one of that image alone"
        )
    return Verdict(frozenset(unreachable))


def _give_up(network: nn.Module, unreachable: set[str], name: str) -> None:
    """Take parameters out of training, if enough are left."""
    for key, value in network.named_parameters():
        value.requires_grad_(value.requires_grad and key not in unreachable)
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    if trained * 2 < sum(value.numel() for value in network.parameters()):
        raise ModelError(
            f"backbone {name}: most of its gradients per image are not understood; choose another (docs/backbones.md)"
        )


def _check_alone(network: nn.Module, images: Tensor, name: str) -> None:
    before = {key: value.clone() for key, value in network.named_buffers()}
    plain: Any = network.timm
    with torch.no_grad():
        first = network(images)
        untouched = plain(images)
        again = network(images)
        others = network(torch.cat([images[:1], -images[1:]]))
    if not torch.equal(first, again):
        raise ModelError(f"backbone {name}: two passes over the same images differ; it is random or keeps state")
    if _differ(untouched, first):
        raise ModelError(f"backbone {name}: it depends on sums in place that hooks do not allow")
    if _differ(first[:1], others[:1]):
        raise ModelError(f"backbone {name}: an image's features change with the other images of the batch")
    changed = [key for key, value in network.named_buffers() if not torch.equal(value, before[key])]
    if changed:
        raise ModelError(f"backbone {name}: buffer {changed[0]} changes in a forward pass and would collect statistics")


def _disagreements(network: nn.Module, images: Tensor) -> set[str]:
    """Trainable parameters whose collected gradients are missing or are not those of each image alone."""
    expected = [_gradients(network, images[i : i + 1]) for i in range(len(images))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns where it finds no faster way to pull gradients back
        collected = collected_shares(network, lambda: _scores(network(images)), len(images))
    _forget(network)
    wrong = set()
    for key, value in network.named_parameters():
        if not value.requires_grad:
            continue
        alone = torch.stack([gradients[key].flatten() for gradients in expected])
        if value not in collected or _differ(alone, collected[value].rows().values):
            wrong.add(key)
    return wrong


def _gradients(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    trainable = {key: value for key, value in network.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(_scores(network(image)).sum(), list(trainable.values()), allow_unused=True)
    return {
        key: torch.zeros_like(value) if gradient is None else gradient
        for (key, value), gradient in zip(trainable.items(), gradients, strict=True)
    }


def _forget(network: nn.Module) -> None:
    """Drop what Opacus leaves on layers."""
    for module in network.modules():
        for leftover in ("activations", "max_batch_len", "ft_compute_sample_grad"):
            if hasattr(module, leftover):
                delattr(module, leftover)


def _scores(features: Tensor) -> Tensor:
    """A number an image whose gradient reaches every feature differently."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(features.shape[1], dtype=features.dtype, generator=generator)
    return (features * weights + features.square()).sum(dim=1)


def _differ(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * float(a.abs().max()) + 1e-12)
