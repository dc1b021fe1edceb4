"""The matrix: layers, shapes of batches and what is wrong with a unit, against a backward pass a unit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from privfm.dp.clipping import ClippingEngine
from privfm.gradients import unit_shares
from privfm.models.grad_samplers import register_rules

VECTORS, TOKENS, GRIDS, MAPS = (8,), (5, 8), (2, 3, 8), (8, 6, 6)

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear on vectors": (lambda: nn.Linear(8, 4), VECTORS),
    "linear on tokens": (lambda: nn.Linear(8, 4), TOKENS),
    "linear on grids": (lambda: nn.Linear(8, 4, bias=False), GRIDS),
    "linear on one token": (lambda: nn.Linear(8, 4), (1, 8)),
    "convolution": (lambda: nn.Conv2d(8, 4, 3, padding=1), MAPS),
    "strided": (lambda: nn.Conv2d(8, 4, 2, stride=2, bias=False), MAPS),
    "uneven": (lambda: nn.Conv2d(8, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), MAPS),
    "same": (lambda: nn.Conv2d(8, 4, 3, padding="same", dilation=2), MAPS),
    "pointwise": (lambda: nn.Conv2d(8, 4, 1), MAPS),
    "grouped": (lambda: nn.Conv2d(8, 4, 3, groups=2), MAPS),
    "depthwise": (lambda: nn.Conv2d(8, 16, 3, groups=8, padding=1), MAPS),
    "circular": (lambda: nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"), MAPS),
    "convolution of lines": (lambda: nn.Conv1d(5, 4, 3, padding=1), TOKENS),
    "convolution of volumes": (lambda: nn.Conv3d(8, 2, 2), (8, 3, 3, 3)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(8, 4, 2, stride=2), MAPS),
    "layer norm": (lambda: nn.LayerNorm(8), TOKENS),
    "layer norm without shift": (lambda: nn.LayerNorm(8, bias=False), TOKENS),
    "layer norm of several dimensions": (lambda: nn.LayerNorm((3, 8)), GRIDS),
    "group norm": (lambda: nn.GroupNorm(4, 8), MAPS),
    "instance norm": (lambda: nn.InstanceNorm2d(8, affine=True), MAPS),
    "root mean square norm": (lambda: nn.RMSNorm(8), TOKENS),
    "embedding": (lambda: nn.Embedding(9, 4), (5,)),
    "rectifier with a slope": (lambda: nn.PReLU(8), MAPS),
    "two layers": (lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3)), TOKENS),
}
BATCHES = [(1, 1), (1, 3), (2, 1), (4, 2)]  # units, views of each


def made(kind: str, units: int, views: int) -> tuple[nn.Module, Tensor]:
    register_rules()
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    network = nn.Sequential(make()).train()
    if kind == "embedding":
        return network, torch.randint(0, 9, (units * views, *shape))
    return network, torch.randn(units * views, *shape)


def losses(network: nn.Module, x: Tensor, units: int) -> Tensor:
    outputs = network(x)
    if not units:
        return outputs.new_zeros(0)
    return (outputs - 0.3).square().flatten(1).sum(dim=1).reshape(units, -1).mean(dim=1)


def rows_of(network: nn.Module, x: Tensor, units: int, *, by_rule: bool) -> Tensor:
    shares = unit_shares(network, lambda: losses(network, x, units), units, by_rule=by_rule)
    return torch.cat([share.rows().values for share in shares], dim=1)


def alone(network: nn.Module, x: Tensor, units: int) -> Tensor:
    """The definition: one backward pass a unit."""
    parts = x.reshape(units, -1, *x.shape[1:])
    rows = [torch.autograd.grad(losses(network, part, 1).sum(), list(network.parameters())) for part in parts]
    return torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])


@pytest.mark.parametrize("by_rule", [True, False], ids=["by rule", "by functorch"])
@pytest.mark.parametrize(("units", "views"), BATCHES)
@pytest.mark.parametrize("kind", LAYERS)
def test_rows_are_those_of_each_unit_alone(kind: str, units: int, views: int, by_rule: bool) -> None:
    network, x = made(kind, units, views)
    torch.testing.assert_close(
        rows_of(network, x, units, by_rule=by_rule), alone(network, x, units), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", LAYERS)
def test_norms_and_clipped_sums_are_those_of_the_rows(kind: str) -> None:
    network, x = made(kind, 4, 2)
    rows = alone(network, x, 4).double()
    shares = unit_shares(network, lambda: losses(network, x, 4), 4)
    norms = torch.stack([share.squared_norms()[0] for share in shares]).sum(dim=0).sqrt()
    torch.testing.assert_close(norms, rows.norm(dim=1), rtol=1e-5, atol=0)
    clip_norm = float(rows.norm(dim=1).min()) / 2
    engine = ClippingEngine(network, clip_norm)
    engine.add(lambda: losses(network, x, 4), 4)
    expected = (rows * clip_norm / rows.norm(dim=1, keepdim=True)).sum(dim=0)
    assert (engine.finish().vector - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "embedding"])
def test_a_unit_that_overflows_leaves_the_others_as_they_were(kind: str, bad: float) -> None:
    network, x = made(kind, 4, 2)
    hurt = x.clone()
    hurt[3].view(-1)[0] = bad  # the second view of unit 1
    with_it, without = ClippingEngine(network, 0.5), ClippingEngine(network, 0.5)
    with_it.add(lambda: losses(network, hurt, 4), 4)
    without.add(lambda: losses(network, torch.cat([x[:2], x[4:]]), 3), 3)
    found, others = with_it.finish().vector, without.finish().vector
    assert bool(found.isfinite().all())
    assert (found - others).norm() <= 0.5 * (1 + 1e-5)
    if not bool(alone(network, hurt, 4)[1].isfinite().all()):
        torch.testing.assert_close(found, others, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_no_units_add_nothing(kind: str) -> None:
    network, x = made(kind, 2, 1)
    engine = ClippingEngine(network, 0.5)
    engine.add(lambda: losses(network, x[:0], 0), 0)
    assert not engine.finish().vector.any()
