"""Laws over all objectives and several backbones: a unit's loss and gradient are its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from privfm.gradients import collected_shares
from privfm.models import BackboneSpec, build_backbone, set_trainable
from privfm.objectives import Byol, Dino, MaskedAutoEncoding, Network, Objective, SimClr, SimMim, SimSiam
from privfm.objectives.catalogue import OBJECTIVES as CATALOGUE

BACKBONES = {
    "vit": BackboneSpec("test_vit", patch_size=8, depth=2),
    "vit with registers": BackboneSpec("test_vit4", patch_size=8, depth=2, channels=3),
    "convnext": BackboneSpec("test_convnext"),
    "resnet": BackboneSpec("test_resnet"),
    "swin": BackboneSpec("swin_tiny_patch4_window7_224", width=24),
}
OBJECTIVES: dict[str, Objective] = {
    "mae": MaskedAutoEncoding(),
    "mae of few": MaskedAutoEncoding(mask_ratio=0.3),
    "simmim": SimMim(),
    "simsiam": SimSiam(public=8, width=8, hidden=16),
    "byol": Byol(public=8, width=8, hidden=16),
    "dino": Dino(public=8, width=8, hidden=16, prototypes=12, temperature=0.5, teacher_temperature=0.3),
    "dino without a centre": Dino(centre="none", public=2, width=8, hidden=16, prototypes=12, temperature=0.5),
    "simclr": SimClr(negatives=8, width=8, hidden=16),
}
UNITS, VIEWS = 3, 2

Case = tuple[Objective, Network, Tensor]


def build(objective: Objective, spec: BackboneSpec, seed: int) -> Network:
    size = (objective.public_images, spec.channels, spec.image_size, spec.image_size)
    public = torch.randn(size, generator=torch.Generator().manual_seed(9))
    return objective.build(build_backbone(spec, seed=0), seed, public)


def test_all_objectives_are_here() -> None:
    assert {each.name for each in OBJECTIVES.values()} == set(CATALOGUE)


@pytest.fixture(params=[(o, b) for o in OBJECTIVES for b in BACKBONES], ids=" on ".join, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    objective, spec = OBJECTIVES[request.param[0]], BACKBONES[request.param[1]]
    network = build(objective, spec, seed=1).double().train()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # timm starts some norms at zero, behind which every gradient would agree
        for value in network.parameters():
            value += 0.1 * torch.randn(value.shape, dtype=torch.float64, generator=generator)
        network.refresh()
        for value in network.parameters():  # noised steps later, what followed the weights is behind them
            value += 0.01 * torch.randn(value.shape, dtype=torch.float64, generator=generator)
    size = (UNITS, VIEWS, spec.channels, spec.image_size, spec.image_size)
    return objective, network, torch.randn(size, dtype=torch.float64, generator=generator)


def rngs(units: list[int]) -> list[np.random.Generator]:
    return [np.random.default_rng(unit) for unit in units]


def gradient(case: Case, views: Tensor, units: list[int], of: int) -> dict[str, Tensor]:
    """The gradient of one unit's loss, in the presence of the others."""
    objective, network, _ = case
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    loss = objective.unit_losses(network, views, rngs(units))[of]
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-7, atol=1e-9 * float(b[name].abs().max()))


def test_moving_another_unit_leaves_a_unit_s_gradient(case: Case) -> None:
    _, _, views = case
    moved = views.clone()
    moved[1] = 10 * views[1].flip(-1) + 1
    assert_same(gradient(case, views, [0, 1, 2], of=0), gradient(case, moved, [0, 7, 2], of=0))
    assert_same(gradient(case, views, [0, 1, 2], of=2), gradient(case, moved, [0, 7, 2], of=2))


def test_removing_another_unit_leaves_a_unit_s_gradient(case: Case) -> None:
    _, _, views = case
    assert_same(gradient(case, views, [0, 1, 2], of=2), gradient(case, views[1:], [1, 2], of=1))
    assert_same(gradient(case, views, [0, 1, 2], of=1), gradient(case, views[1:2], [1], of=0))


def test_one_backward_pass_finds_each_unit_s_gradient(case: Case) -> None:
    objective, network, views = case
    expected = [gradient(case, views[unit : unit + 1], [unit], of=0) for unit in range(UNITS)]
    shares = collected_shares(network, lambda: objective.unit_losses(network, views, rngs([0, 1, 2])), UNITS)
    for name, value in network.named_parameters():
        if value.requires_grad:
            alone = torch.stack([gradients[name].flatten() for gradients in expected])
            scale = float(alone.abs().max())
            torch.testing.assert_close(shares[value].rows().values, alone, rtol=1e-7, atol=1e-9 * scale)


def test_a_unit_s_loss_is_the_mean_over_its_views(case: Case) -> None:
    objective, network, views = case
    together = objective.unit_losses(network, views[:1], rngs([0]))
    rng = np.random.default_rng(0)
    apart = [objective.unit_losses(network, views[:1, view : view + 1], [rng]) for view in range(VIEWS)]
    torch.testing.assert_close(together, torch.stack(apart).mean(dim=0))


def test_every_trainable_parameter_is_used(case: Case) -> None:
    _, network, views = case
    for name, value in gradient(case, views, [0, 1, 2], of=0).items():
        alone = "relative_position" in name and "layers.3" in name  # a window of one patch
        assert (value.abs().max() > 0) != alone, name
    assert all(not value.requires_grad for name, value in network.named_parameters() if name in network.fixed)


def test_the_same_draws_give_the_same_loss(case: Case) -> None:
    objective, network, views = case
    first, again, other = (
        objective.unit_losses(network, views, rngs(units)) for units in ([0, 1, 2], [0, 1, 2], [3, 1, 2])
    )
    assert torch.equal(first, again)
    assert first[0] != other[0]
    assert torch.equal(first[1:], other[1:])


def test_what_follows_the_weights_moves_when_it_is_told_to_alone(case: Case) -> None:
    objective, network, views = case
    before = {name: value.clone() for name, value in network.named_buffers()}
    trained = [value for value in network.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-12)
    for step in range(2):
        optimizer.zero_grad()
        objective.unit_losses(network, views, rngs([step, 1, 2])).sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    if objective.public_images:
        network.refresh()
        assert any(not torch.equal(value, before[name]) for name, value in network.named_buffers())


def test_no_units_give_no_losses(case: Case) -> None:
    objective, network, views = case
    assert objective.unit_losses(network, views[:0], []).shape == (0,)


def test_losses_come_with_the_features_of_each_view(case: Case) -> None:
    objective, network, views = case
    losses, features = objective.losses_and_features(network, views, rngs([0, 1, 2]))
    assert torch.equal(losses, objective.unit_losses(network, views, rngs([0, 1, 2])))
    assert features.shape == (UNITS, VIEWS, network.feature_width)
    moved = views.clone()
    moved[1] += 1.0
    again = objective.losses_and_features(network, moved, rngs([0, 1, 2]))[1]
    torch.testing.assert_close(again[[0, 2]], features[[0, 2]])


def test_one_generator_per_unit(case: Case) -> None:
    objective, network, views = case
    with pytest.raises(ValueError, match="number of units 3"):
        objective.unit_losses(network, views, rngs([0]))


def test_building_is_seeded_and_leaves_the_global_state() -> None:
    state = torch.get_rng_state()
    for objective in OBJECTIVES.values():
        first, again, other = (build(objective, BACKBONES["vit"], seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("which", ["last-1", "norm-bias", "all"])
def test_networks_can_be_trained_in_part(which: str) -> None:
    for objective in OBJECTIVES.values():
        network = build(objective, BACKBONES["vit"], seed=1)
        count = set_trainable(network, which)
        assert 0 < count <= sum(value.numel() for value in network.parameters())
