from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from privfm.dp.clipping import ClippingEngine, check_clippable, gradient_norms
from privfm.errors import ModelError
from privfm.gradients import Factors, Rows, unit_shares

VIEWS = 3


class Twice(nn.Module):
    """Uses one layer's parameters two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Tied(nn.Module):
    """Two layers with one weight, and a transformed copy of the input for each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class FrozenFirst(nn.Module):
    """Trains a norm and a last layer behind a layer that does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


class BehindTheBack(nn.Module):
    """Reads a layer's weight without calling the layer, and calls it too."""

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
    "tied": Tied,
    "depthwise": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 2, groups=4, padding=1, stride=2), nn.Flatten()
    ),
    "reflected": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect", dilation=1, bias=False),
        nn.Flatten(),
    ),
    "behind the back": BehindTheBack,
    "frozen first": FrozenFirst,
    "many tokens": lambda: nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Linear(1, 2), nn.GELU(), nn.Linear(2, 2)),
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


def test_networks_that_can_be_clipped_pass(network: nn.Module) -> None:
    check_clippable(network, lambda: unit_losses(network, 100 * batch(3)), 3)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_loss_that_is_not_one_value_a_unit_is_refused() -> None:
    network = nn.Linear(6, 4).train()
    with pytest.raises(ValueError, match="need a value for each of 3 units"):
        ClippingEngine(network, 1.0).add(lambda: network(batch(3)).square().sum(1), 3)


def test_norms_are_those_of_a_loop_over_units(network: nn.Module) -> None:
    x = batch(4)
    norms = gradient_norms(network, lambda: unit_losses(network, x), 4)
    alone = [oracle(network, x[unit * VIEWS : (unit + 1) * VIEWS], 1e9).norm() for unit in range(4)]
    torch.testing.assert_close(norms, torch.stack(alone), rtol=1e-5, atol=1e-7)


def test_a_pass_leaves_the_network_as_it_was(network: nn.Module) -> None:
    network.register_parameter("frozen", nn.Parameter(torch.ones(1), requires_grad=False))
    before = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    with pytest.raises(RuntimeError, match="planted"):
        unit_shares(network, lambda: torch.zeros(1) + broken(network), 4)
    gradient_norms(network, lambda: unit_losses(network, batch(4)), 4)
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == before
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def broken(network: nn.Module) -> Tensor:
    network(batch(4))
    raise RuntimeError("planted")


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_both_ways_to_a_norm_agree(tokens: int) -> None:
    random = torch.Generator().manual_seed(tokens)
    inputs = torch.randn(5, 2, tokens, 7, generator=random)
    factors = Factors(inputs, torch.randn(5, 2, tokens, 4, generator=random))
    assert factors.cheaper_as_rows == (tokens > 2)
    torch.testing.assert_close(factors.squared_norms()[0], factors.rows().squared_norms()[0], rtol=1e-5, atol=0)
    weights = torch.rand(5, generator=random)
    torch.testing.assert_close(factors.weighted_sum(weights), factors.rows().weighted_sum(weights))


def test_norms_of_units_that_cancel_are_never_below_zero() -> None:
    inputs = torch.full((1, 1, 2, 3), 1e3)
    outputs = torch.tensor([1.0, -1.0]).reshape(1, 1, 2, 1)
    assert Factors(inputs, outputs).squared_norms()[0].tolist() == [0.0]


def test_a_clip_norm_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="clip_norm=0"):
        ClippingEngine(nn.Linear(2, 2), 0.0)


def test_units_within_the_norm_are_counted_and_unsound_ones_are_not() -> None:
    torch.manual_seed(0)
    network, x = NETWORKS["tokens"](), batch(9)
    norms = gradient_norms(network, lambda: unit_losses(network, x), 9)
    engine = ClippingEngine(network, float(norms.median()))
    engine.add(lambda: unit_losses(network, x), 9)
    x[:VIEWS] = float("nan")
    engine.add(lambda: unit_losses(network, x[:VIEWS]), 1)
    done = engine.finish()
    assert (done.units, done.within) == (10, int((norms <= norms.median()).sum()))
    assert engine.finish().units == 0
    assert "within" not in repr(done)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_layers_are_clipped_to_the_same_norm(name: str) -> None:
    torch.manual_seed(0)
    network, x = NETWORKS[name](), batch(5)
    norms = gradient_norms(network, lambda: unit_losses(network, x), 5)
    clip_norm = 0.5 * float(norms.min())
    engine = ClippingEngine(network, clip_norm, torch.bfloat16)
    for unit in range(5):  # alone, so that the bound shows
        engine.add(partial(unit_losses, network, x[unit * VIEWS : (unit + 1) * VIEWS]), 1)
        alone = engine.finish().vector
        assert alone.dtype is torch.float32
        assert clip_norm * 0.999 < float(alone.norm()) < clip_norm * (1 + 1e-5)
    engine.add(lambda: unit_losses(network, x), 5)
    torch.testing.assert_close(engine.finish().vector, oracle(network, x, clip_norm), rtol=0.1, atol=0.05 * clip_norm)
    engine = ClippingEngine(network, clip_norm)
    engine.add(lambda: unit_losses(network, x), 5)
    torch.testing.assert_close(engine.finish().vector, oracle(network, x, clip_norm))


class Cancelling(nn.Module):
    """One layer whose tokens share a part that is as large as the caller wants, under gradients that add up to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=False)

    def losses(self, common: float, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        seen = common * torch.randn(64, generator=generator) + torch.randn(1, 4, 64, generator=generator)
        pulls = torch.randn(1, 4, 64, generator=generator)
        return (self.layer(seen) * (pulls - pulls.mean(dim=1, keepdim=True))).sum(dim=(1, 2))


@pytest.mark.parametrize("common", [1.0, 1e2, 1e3, 1e4, 1e5, 1e6])
def test_tokens_that_cancel_let_nothing_through(common: float) -> None:
    """A model can be made to cancel: then a norm from products of tokens is rounding, and clips nothing."""
    network = Cancelling()
    for seed in range(20):
        engine = ClippingEngine(network, 1.0)
        engine.add(partial(network.losses, common, seed), 1)
        released = float(engine.finish().vector.double().norm())
        assert released <= 1 + 1e-3


@pytest.mark.parametrize("clip_norm", [1e-3, 1e-5])
def test_numbers_too_small_to_multiply_let_nothing_through(clip_norm: float) -> None:
    network = nn.Linear(8, 8, bias=False)
    seen, pulls = torch.full((1, 4, 8), 1e-23), torch.full((1, 4, 8), 1e17)
    engine = ClippingEngine(network, clip_norm)
    engine.add(lambda: (network(seen) * pulls).sum(dim=(1, 2)), 1)
    assert float(engine.finish().vector.double().norm()) <= clip_norm * (1 + 1e-3)


def test_a_gradient_too_long_to_be_scaled_counts_as_none() -> None:
    network = nn.Linear(4, 4, bias=False)
    engine = ClippingEngine(network, 1e-5)
    engine.add(lambda: network(torch.full((1, 4), 1e18)).sum(dim=1) * 1e14, 1)
    done = engine.finish()
    assert not done.vector.any()
    assert done.within == 0


def test_units_that_make_up_the_number_add_nothing(network: nn.Module) -> None:
    x = batch(6)
    engine = ClippingEngine(network, 0.1)
    engine.add(lambda: unit_losses(network, x), 6, counted=4)
    done = engine.finish()
    torch.testing.assert_close(done.vector, oracle(network, x[: 4 * VIEWS], 0.1), rtol=1e-5, atol=1e-6)
    assert done.units == 4


class Swapped(nn.Module):
    """Hands each unit's rows to another on the way through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flip(0)).flip(0)


def test_gradients_that_go_to_another_unit_are_noticed() -> None:
    """Their sum is right, so that only a look at each unit finds it."""
    network, x = Swapped(), batch(2)
    with pytest.raises(ModelError, match="another's"):
        check_clippable(network, lambda: unit_losses(network, x), 2)


class RoundedBySize(TorchFunctionMode):
    """A library that rounds a batch of products by how many it has, as those of GPUs do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in (torch.matmul, Tensor.matmul, Tensor.__matmul__) or result.dim() != 4:
            return result
        noise = torch.randn(result.shape[1:], generator=torch.Generator().manual_seed(len(result)))
        return result + 1e-7 * noise * (args[0].abs() @ args[1].abs())


def test_a_unit_that_cancels_adds_the_same_whoever_else_does() -> None:
    """What is left of such a unit is rounding, which must not depend on how many others are written out beside it."""
    network, generator = nn.Linear(64, 64, bias=False), torch.Generator().manual_seed(0)
    seen = 1e9 * torch.randn(8, 1, 64, generator=generator) + torch.randn(8, 4, 64, generator=generator)
    pulls = torch.randn(8, 4, 64, generator=generator)
    pulls -= pulls.mean(dim=1, keepdim=True)

    def summed(units: int) -> Tensor:
        """Of the first ones, the others being blank."""
        real = (torch.arange(8) < units)[:, None, None]
        engine = ClippingEngine(network, 1.0)
        with RoundedBySize():
            engine.add(lambda: (network(seen * real) * pulls * real).sum(dim=(1, 2)), 8, counted=units)
        return engine.finish().vector

    assert 0.99 < float((summed(7) - summed(6)).norm()) <= 1 + 1e-3


def test_an_engine_that_was_cut_short_releases_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some weights have the batch by then and others not: added again, a unit would count twice in the former."""
    network, x, sums = nn.Linear(6, 4), batch(5), Rows.weighted_sum
    engine = ClippingEngine(network, 0.1)
    engine.add(lambda: unit_losses(network, x[: 2 * VIEWS]), 2)

    def full(self: Rows, factors: Tensor) -> Tensor:
        if self.values.shape[1] == network.bias.numel():
            raise MemoryError
        return sums(self, factors)

    monkeypatch.setattr(Rows, "weighted_sum", full)
    with pytest.raises(MemoryError):
        engine.add(lambda: unit_losses(network, x), 5)
    monkeypatch.setattr(Rows, "weighted_sum", sums)
    with pytest.raises(RuntimeError, match="in part only"):
        engine.add(lambda: unit_losses(network, x), 5)
    with pytest.raises(RuntimeError, match="in part only"):
        engine.finish()
