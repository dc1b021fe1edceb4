from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privfm.dp.clipping import ClippingEngine, check_clippable, clip
from privfm.errors import ModelError

VIEWS = 3


class Twice(nn.Module):
    """Uses one layer's parameters two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class BehindTheBack(nn.Module):
    """Reads a layer's weight without calling the layer, once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.layer(x), self.layer.weight)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 4),
    "tokens": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Linear(3, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 2)
    ),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), nn.GroupNorm(2, 4), nn.Flatten()
    ),
    "twice": Twice,
}


def batch(units: int) -> Tensor:
    return torch.randn(units * VIEWS, 6, generator=torch.Generator().manual_seed(units))


def unit_losses(network: nn.Module, x: Tensor) -> Tensor:
    return network(x).flatten(1).square().sum(1).reshape(-1, VIEWS).mean(1)


def oracle(network: nn.Module, x: Tensor, clip_norm: float) -> Tensor:
    """The definition: one backward pass a unit, clipped, summed."""
    total = torch.zeros(sum(p.numel() for p in network.parameters() if p.requires_grad))
    parameters = [p for p in network.parameters() if p.requires_grad]
    for unit in range(len(x) // VIEWS):
        loss = unit_losses(network, x[unit * VIEWS : (unit + 1) * VIEWS]).sum()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        total += gradient * min(1.0, clip_norm / float(gradient.norm()))
    return total


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[request.param]().train()


@pytest.mark.parametrize("clip_norm", [0.1, 1e6])
def test_sums_equal_a_loop_over_units(network: nn.Module, clip_norm: float) -> None:
    x = batch(5)
    engine = ClippingEngine(network, clip_norm)
    engine.add(lambda: unit_losses(network, x), 5)
    torch.testing.assert_close(engine.finish().vector, oracle(network, x, clip_norm), rtol=1e-5, atol=1e-6)


def test_micro_batches_of_whole_units_change_nothing(network: nn.Module) -> None:
    x = batch(5)
    engine = ClippingEngine(network, 0.1)
    engine.add(lambda: unit_losses(network, x[: 2 * VIEWS]), 2)
    engine.add(lambda: unit_losses(network, x[2 * VIEWS :]), 3)
    torch.testing.assert_close(engine.finish().vector, oracle(network, x, 0.1), rtol=1e-5, atol=1e-6)


def test_one_unit_moves_the_sum_by_at_most_the_clip_norm(network: nn.Module) -> None:
    x = batch(4)
    x[:VIEWS] *= 100
    with_unit, without = ClippingEngine(network, 0.5), ClippingEngine(network, 0.5)
    with_unit.add(lambda: unit_losses(network, x), 4)
    without.add(lambda: unit_losses(network, x[VIEWS:]), 3)
    moved = (with_unit.finish().vector - without.finish().vector).norm()
    assert 0.49 < moved <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_unit_that_is_not_finite_counts_as_zero(network: nn.Module, bad: float) -> None:
    x = batch(4)
    x[VIEWS + 1, 2] = bad
    keep = torch.cat([x[:VIEWS], x[2 * VIEWS :]])
    engine = ClippingEngine(network, 0.1)
    engine.add(lambda: unit_losses(network, x), 4)
    torch.testing.assert_close(engine.finish().vector, oracle(network, keep, 0.1), rtol=1e-5, atol=1e-6)


def test_an_empty_draw_sums_to_zero(network: nn.Module) -> None:
    assert not ClippingEngine(network, 1.0).finish().vector.any()


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Linear(6, 4).train()
    network.weight.requires_grad_(False)
    x = batch(3)
    engine = ClippingEngine(network, 0.1)
    engine.add(lambda: unit_losses(network, x), 3)
    summed = engine.finish().vector
    assert summed.shape == (4,)
    torch.testing.assert_close(summed, oracle(network, x, 0.1), rtol=1e-5, atol=1e-6)


def test_a_weight_read_behind_its_layers_back_is_noticed() -> None:
    torch.manual_seed(0)
    network = BehindTheBack().train()
    with pytest.raises(ModelError, match="do not add up"):
        check_clippable(network, lambda: unit_losses(network, batch(3)), 3)


def test_networks_that_can_be_clipped_pass(network: nn.Module) -> None:
    check_clippable(network, lambda: unit_losses(network, 100 * batch(3)), 3)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_loss_that_is_not_one_value_a_unit_is_refused() -> None:
    network = nn.Linear(6, 4).train()
    with pytest.raises(ValueError, match="one value for each of 3 units"):
        ClippingEngine(network, 1.0).add(lambda: network(batch(3)).square().sum(1), 3)


def test_clipping_scales_only_what_is_longer() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clip(rows, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_a_clip_norm_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="clip_norm=0"):
        ClippingEngine(nn.Linear(2, 2), 0.0)
