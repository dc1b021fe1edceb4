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


def test_loose_parameters_are_fixed_with_a_note() -> None:
    network = Scaled()
    notes = prepare(network)
    assert notes == ("gamma: layer scale fixed to 1", "shift: fixed at its first value")
    assert torch.equal(network.gamma, torch.ones(4))
    assert torch.equal(network.shift, torch.full((4,), 0.5))
    trained = [name for name, value in network.named_parameters() if value.requires_grad]
    assert trained == ["layer.weight", "layer.bias"]
