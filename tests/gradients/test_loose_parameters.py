"""Parameters that meet the batch outside of a layer, in the ways that backbones use them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privfm.dp.clipping import check_clippable
from privfm.errors import ModelError
from privfm.gradients import collected_shares, unit_shares
from privfm.models import BackboneSpec, build_backbone
from privfm.models.grad_samplers import register_rules

UNITS, VIEWS, TOKENS, WIDTH, HEADS = 3, 2, 4, 8, 2


class Loose(nn.Module):
    """Has a layer, and parameters beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(7, HEADS))
        self.position = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.scale = nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("index", torch.arange(TOKENS * TOKENS).remainder(7).reshape(TOKENS, TOKENS))
        self.register_buffer("coordinates", torch.linspace(-1, 1, 14).reshape(7, 2))


class Positions(Loose):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.position)


class Scaled(Loose):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.layer(x)


class ReshapedScale(Loose):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).transpose(1, 2).mul(self.scale.reshape(1, -1, 1))


class Token(Loose):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cat([self.token.expand(len(x), -1, -1), x], dim=1))


class PositionedToken(Loose):
    """The token's own position is added before the batch is known."""

    def forward(self, x: Tensor) -> Tensor:
        token = (self.token + self.position[:, :1]).expand(len(x), -1, -1)
        return self.layer(torch.cat([token, x + self.position], dim=1))


class Relative(Loose):
    """Attention with a bias looked up in a table."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.layer(x).reshape(len(x), TOKENS, HEADS, -1).transpose(1, 2)
        bias = self.table[self.index.view(-1)].view(TOKENS, TOKENS, HEADS).permute(2, 0, 1).contiguous()
        return (q @ q.mT + bias.unsqueeze(0)).softmax(dim=-1) @ q


class FusedRelative(Loose):
    def forward(self, x: Tensor) -> Tensor:
        q = self.layer(x).reshape(len(x), TOKENS, HEADS, -1).transpose(1, 2)
        bias = self.table[self.index].permute(2, 0, 1)
        return functional.scaled_dot_product_attention(q, q, q, attn_mask=bias)


class Windows(Relative):
    """Every image becomes two windows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.stack([x, x.flip(1)], dim=1).flatten(0, 1)).reshape(len(x), -1)


class Generated(Loose):
    """A small network over constant coordinates makes the table."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, HEADS, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        q = self.layer(x).reshape(len(x), TOKENS, HEADS, -1).transpose(1, 2)
        bias = 16 * torch.sigmoid(self.network(self.coordinates))[self.index].permute(2, 0, 1)
        return (q @ q.mT + bias.unsqueeze(0)).softmax(dim=-1) @ q


class Assembled(Loose):
    """A layer's weight is used behind its back, with a bias put together of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(WIDTH - 5))

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.first, torch.zeros_like(self.scale[:2]), self.last])
        return functional.linear(x, weight=self.layer.weight, bias=bias)


class Mixed(Loose):
    """A weight is used by its layer and behind its back."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.tanh(self.layer(x)), self.layer.weight, self.layer.bias)


class Twice(Loose):
    """One position, two places."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.position) * (1 + self.position) - self.position


class Temperature(Loose):
    """A factor within limits, as in Swin V2's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.randn(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q = self.layer(x).reshape(len(x), TOKENS, HEADS, -1).transpose(1, 2)
        return (q @ q.mT * torch.clamp(self.logit_scale, max=4.6).exp()).softmax(dim=-1) @ q


UNDERSTOOD: tuple[type[Loose], ...] = (
    Positions, Scaled, ReshapedScale, Token, PositionedToken, Relative, FusedRelative, Windows, Generated, Assembled,
    Mixed, Twice, Temperature,
)  # fmt: skip


class Escaping(Loose):
    """A use that nothing is known about."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btd,td->btd", self.layer(x), self.position[0])


class HalfEscaping(Loose):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btd,td->btd", self.layer(x) + self.position, self.position[0])


def used(network: nn.Module, x: Tensor) -> list[nn.Parameter]:
    """Freezes what a network does not use; returns the rest."""
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(network(x).square().sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return [parameter for parameter in parameters if parameter.requires_grad]


def losses(network: nn.Module, x: Tensor) -> Tensor:
    return network(x).flatten(1).square().sum(dim=1).reshape(-1, VIEWS).mean(dim=1)


def made(kind: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, list[nn.Parameter]]:
    register_rules()
    torch.manual_seed(0)
    network, x = kind().train(), torch.randn(UNITS * VIEWS, TOKENS, WIDTH)
    return network, x, used(network, x)


@pytest.mark.parametrize("frozen_layers", [False, True])
@pytest.mark.parametrize("kind", UNDERSTOOD)
def test_rows_are_those_of_each_unit_alone(kind: type[Loose], frozen_layers: bool) -> None:
    network, x, parameters = made(kind)
    if frozen_layers and kind not in (Mixed,):
        network.layer.requires_grad_(False)
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
    shares = unit_shares(network, lambda: losses(network, x), UNITS)
    found = torch.cat([share.rows().values for share in shares], dim=1)
    for unit in range(UNITS):
        alone = torch.autograd.grad(losses(network, x[unit * VIEWS : (unit + 1) * VIEWS]).sum(), parameters)
        expected = torch.cat([gradient.flatten() for gradient in alone])
        torch.testing.assert_close(found[unit], expected, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("kind", UNDERSTOOD)
def test_one_units_nan_stays_its_own(kind: type[Loose]) -> None:
    network, x, _ = made(kind)
    hurt = x.clone()
    hurt[VIEWS] = float("nan")
    whole, broken = (
        torch.cat([s.rows().values for s in unit_shares(network, lambda x=x: losses(network, x), UNITS)], dim=1)
        for x in (x, hurt)
    )
    torch.testing.assert_close(broken[[0, 2]], whole[[0, 2]])
    assert not bool(broken[1].isfinite().all())


def test_a_use_that_is_not_understood_collects_nothing() -> None:
    network, x, _ = made(Escaping)
    assert network.position not in collected_shares(network, lambda: losses(network, x), UNITS)
    with pytest.raises(ModelError, match="no gradient per image"):
        unit_shares(network, lambda: losses(network, x), UNITS)


def test_a_use_that_is_half_understood_is_noticed() -> None:
    network, x, _ = made(HalfEscaping)
    with pytest.raises(ModelError, match="cannot be told"):
        check_clippable(network, lambda: losses(network, x), UNITS)


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit4", "test_vit_relpos", "test_convnext", "test_nfnet", "test_efficientnet_gn"]
)
def test_small_backbones_train_all_of_their_parameters(name: str) -> None:
    backbone = build_backbone(BackboneSpec(name, image_size=32), seed=0)
    assert not backbone.fixed


def test_fused_bias_and_generated_positions_of_a_swin_v2() -> None:
    spec = BackboneSpec("swinv2_tiny_window8_256", image_size=64, width=24, depth=None)
    backbone = build_backbone(spec, seed=0)
    assert not backbone.fixed
