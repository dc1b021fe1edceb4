from __future__ import annotations

import torch
from torch import nn

from privfm.models.preparation import prepare
from privfm.models.torchvision_shim import timm


class Scaled(nn.Module):
    """A layer scale beside further layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((4,), 1e-6))
        self.shift = nn.Parameter(torch.full((4,), 0.5))
        self.layer = nn.Linear(4, 4)


def test_what_is_random_or_in_place_is_switched_off() -> None:
    network = nn.Sequential(
        nn.Dropout(0.5), timm.layers.DropPath(0.5), nn.ReLU(inplace=True), nn.Dropout2d(0.1)
    ).train()
    assert prepare(network) == ()
    values = torch.randn(8, 4, 2, 2)
    torch.testing.assert_close(network(values), values.relu())
    assert not network[2].inplace


def test_a_layer_scale_that_is_nearly_zero_starts_at_one() -> None:
    network = Scaled()
    assert prepare(network) == ("gamma: layer scale starts at 1",)
    assert torch.equal(network.gamma, torch.ones(4))
    assert torch.equal(network.shift, torch.full((4,), 0.5))
    assert all(value.requires_grad for value in network.parameters())
