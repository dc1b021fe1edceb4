"""Rules per layer against one backward pass per image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from torch import Tensor, nn

from privfm.models.grad_samplers import register_rules
from privfm.models.torchvision_shim import timm

MAP = (3, 8, 6, 6)
TOKENS = (3, 5, 8)


def layers() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    norms = timm.layers
    scale = timm.models.vision_transformer.LayerScale
    return {
        "convolution": (lambda: nn.Conv2d(8, 4, 3, padding=1), MAP),
        "strided": (lambda: nn.Conv2d(8, 4, 2, stride=2, bias=False), MAP),
        "pointwise": (lambda: nn.Conv2d(8, 4, 1), MAP),
        "depthwise": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), MAP),
        "grouped": (lambda: nn.Conv2d(8, 4, 3, padding="same", groups=2), MAP),
        "dilated": (lambda: nn.Conv2d(8, 4, 3, dilation=2, padding=(2, 1)), MAP),
        "reflected": (lambda: nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"), MAP),
        "layer norm": (lambda: norms.LayerNorm(8), TOKENS),
        "layer norm of vectors": (lambda: norms.LayerNorm(8), (3, 8)),
        "layer norm of maps": (lambda: norms.LayerNorm2d(8), MAP),
        "group norm": (lambda: norms.GroupNorm(8, num_groups=4), MAP),
        "one group": (lambda: norms.GroupNorm1(8), MAP),
        "layer scale": (lambda: scale(8, init_values=0.3), TOKENS),
    }


@pytest.mark.parametrize("memory", ["contiguous", "permuted"])
@pytest.mark.parametrize("kind", layers())
def test_rule_agrees_with_one_pass_per_image(kind: str, memory: str) -> None:
    register_rules()
    make, shape = layers()[kind]
    torch.manual_seed(0)
    network = nn.Sequential(make()).double()
    for value in network.parameters():
        nn.init.normal_(value)
    inputs = torch.randn(shape, dtype=torch.float64)
    if memory == "permuted" and len(shape) > 2:
        inputs = inputs.transpose(1, -1).contiguous().transpose(1, -1)
    expected = [alone(network, inputs[i : i + 1]) for i in range(len(inputs))]
    GradSampleHooks(network, loss_reduction="sum")
    network(inputs.requires_grad_()).pow(3).sum().backward()
    for row, value in enumerate(network.parameters()):
        torch.testing.assert_close(value.grad_sample, torch.stack([gradients[row] for gradients in expected]))


def alone(network: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(network(image).pow(3).sum(), list(network.parameters()))
