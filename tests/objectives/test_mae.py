from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privfm.errors import ModelError
from privfm.models import BackboneSpec, build_backbone
from privfm.objectives import MaskedAutoEncoding
from privfm.objectives.masking import draw_orders, normalised, patchify, unpatchify

VIT = BackboneSpec("test_vit", patch_size=8, depth=2)
CONVNEXT = BackboneSpec("test_convnext", patch_size=None)


def images(count: int, channels: int = 1) -> torch.Tensor:
    return torch.randn(count, channels, 32, 32, generator=torch.Generator().manual_seed(0))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_patches_are_in_row_order_and_go_back(rows: int, columns: int, channels: int, patch: int) -> None:
    pixels = torch.rand(2, channels, rows * patch, columns * patch)
    patches = patchify(pixels, patch)
    assert patches.shape == (2, rows * columns, channels * patch * patch)
    last = pixels[:, :, -patch:, -patch:].flatten(1)
    torch.testing.assert_close(patches[:, -1], last)
    assert torch.equal(unpatchify(patches, patch, (channels, rows * patch, columns * patch)), pixels)


def test_a_flat_patch_has_a_finite_target() -> None:
    assert normalised(torch.ones(1, 1, 16)).abs().max() == 0


def test_orders_are_permutations_and_keyed_by_unit() -> None:
    orders = draw_orders([np.random.default_rng(5), np.random.default_rng(6)], views=3, patches=16)
    assert orders.shape == (6, 16)
    assert (orders.sort(dim=1).values == torch.arange(16)).all()
    assert torch.equal(draw_orders([np.random.default_rng(6)], views=3, patches=16), orders[3:])
    assert len({tuple(row) for row in orders.tolist()}) == 6


@pytest.mark.parametrize("spec", [VIT, CONVNEXT], ids=["vit", "convnext"])
def test_hidden_pixels_do_not_reach_the_prediction(spec: BackboneSpec) -> None:
    network = MaskedAutoEncoding().build(build_backbone(spec, seed=0), seed=0)
    batch = images(1)
    keep = torch.arange(network.patches)[None, ::3]
    hidden = torch.ones(network.patches, dtype=torch.bool)
    hidden[keep[0]] = False
    patches = patchify(batch, network.patch)
    patches[:, hidden] = 7.0
    changed = unpatchify(patches, network.patch, (1, 32, 32))
    assert torch.equal(network(batch, keep), network(changed, keep))
    shown = unpatchify(patches + ~hidden[:, None], network.patch, (1, 32, 32))
    assert not torch.equal(network(batch, keep), network(shown, keep))


@pytest.mark.parametrize("spec", [VIT, CONVNEXT], ids=["vit", "convnext"])
def test_only_hidden_patches_count(spec: BackboneSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = MaskedAutoEncoding(mask_ratio=0.5)
    network = objective.build(build_backbone(spec, seed=0), seed=0)
    batch = images(1)
    rng = np.random.default_rng(0)
    order = draw_orders([np.random.default_rng(0)], 1, network.patches)
    kept, hidden = order[:, : network.patches // 2], order[:, network.patches // 2 :]
    targets = normalised(patchify(batch, network.patch))
    exact = targets.clone()
    exact.scatter_(1, kept.unsqueeze(-1).expand(-1, -1, targets.shape[-1]), 99.0)
    monkeypatch.setattr(network, "decode", lambda known, keep: exact)
    assert objective.unit_losses(network, batch[None], [rng]).item() == 0.0
    exact.scatter_add_(
        1, hidden[:, :1].unsqueeze(-1).expand(-1, -1, targets.shape[-1]), torch.ones_like(targets[:, :1])
    )
    loss = objective.unit_losses(network, batch[None], [np.random.default_rng(0)])
    torch.testing.assert_close(loss, torch.tensor([1.0 / hidden.shape[1]]))


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 4), (0.99, 1), (0.01, 15), (0.5, 8)])
def test_something_is_kept_and_something_is_hidden(ratio: float, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = MaskedAutoEncoding(mask_ratio=ratio)
    network = objective.build(build_backbone(VIT, seed=0), seed=0)
    seen = []
    monkeypatch.setattr(network, "decode", lambda known, keep: seen.append(keep.shape[1]) or torch.zeros(2, 16, 64))
    objective.unit_losses(network, images(2)[None], [np.random.default_rng(0)])
    assert seen == [kept]


def test_training_lowers_the_loss() -> None:
    objective = MaskedAutoEncoding()
    network = objective.build(build_backbone(VIT, seed=0), seed=0)
    waves = torch.sin(torch.linspace(0, 12, 32)).expand(8, 1, 1, 32, 32) + 0.1 * images(8)[:, None]
    optimizer = torch.optim.AdamW([value for value in network.parameters() if value.requires_grad], lr=3e-3)
    losses = []
    for step in range(40):
        loss = objective.unit_losses(network, waves, [np.random.default_rng([step, unit]) for unit in range(8)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize("spec", [VIT, CONVNEXT], ids=["vit", "convnext"])
def test_reconstruction_keeps_what_was_seen(spec: BackboneSpec) -> None:
    objective = MaskedAutoEncoding()
    network = objective.build(build_backbone(spec, seed=0), seed=0)
    batch = images(2)
    seen, made = objective.reconstruct(network, batch, np.random.default_rng(0))
    shown = seen != 0
    assert seen.shape == made.shape == batch.shape
    assert torch.equal(seen[shown], batch[shown])
    torch.testing.assert_close(made[shown], batch[shown])
    assert shown.float().mean() == pytest.approx(0.25)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.2])
def test_mask_ratio_must_leave_both_kinds(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"mask_ratio={ratio}"):
        MaskedAutoEncoding(mask_ratio=ratio)


def test_image_sizes_that_patches_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match="divide"):
        MaskedAutoEncoding().build(build_backbone(BackboneSpec("test_convnext", image_size=50), seed=0), seed=0)


def test_networks_of_others_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear"):
        MaskedAutoEncoding().unit_losses(torch.nn.Linear(1, 1), images(1)[None], [np.random.default_rng(0)])  # type: ignore[arg-type]
