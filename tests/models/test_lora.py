"""Adapters start as nothing, train alone, and leave as part of the layers that they adapt."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from privfm.errors import PlanError
from privfm.gradients import collected_shares
from privfm.models import (
    Backbone,
    BackboneSpec,
    add_adapters,
    build_backbone,
    load_backbone,
    load_checkpoint,
    load_without_adapters,
    save_backbone,
)
from privfm.models.lora import LowRankLinear, adapter_names
from privfm.models.torchvision_shim import timm

VIT = BackboneSpec("test_vit", depth=2)


def adapted(*, moved: bool = True) -> Backbone:
    backbone = build_backbone(VIT, seed=0)
    add_adapters(backbone, rank=3, seed=1)
    if moved:
        generator = torch.Generator().manual_seed(2)
        for name, value in backbone.named_parameters():
            if name in adapter_names(backbone):
                value.data = 0.1 * torch.randn(value.shape, generator=generator)
    return backbone


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(3))


def test_adapters_change_nothing_at_first_and_something_later() -> None:
    plain = build_backbone(VIT, seed=0)
    torch.testing.assert_close(adapted(moved=False).features(images()), plain.features(images()))
    assert (adapted().features(images()) - plain.features(images())).abs().max() > 1e-2


def test_every_linear_layer_has_one_and_the_same_seed_gives_the_same() -> None:
    backbone, again = adapted(moved=False), adapted(moved=False)
    layers = [module for module in backbone.timm.modules() if isinstance(module, LowRankLinear)]
    assert len(layers) == 2 * 4
    assert len(adapter_names(backbone)) == 16
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_a_copy_has_adapters_of_its_own() -> None:
    backbone = adapted()
    twin, before = copy.deepcopy(backbone), backbone.features(images())
    for name, value in twin.named_parameters():
        if name in adapter_names(twin):
            value.data.zero_()
    assert torch.equal(backbone.features(images()), before)
    assert not torch.equal(twin.features(images()), before)


def test_the_export_is_a_plain_model_that_computes_the_same(tmp_path: Path) -> None:
    backbone = adapted()
    save_backbone(backbone, tmp_path)
    torch.testing.assert_close(load_backbone(tmp_path).features(images()), backbone.features(images()))
    alone = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(alone(images()), backbone.eval().features(images()))


def test_a_start_is_loaded_under_adapters(tmp_path: Path) -> None:
    start = build_backbone(VIT, seed=9)
    save_backbone(start, tmp_path)
    backbone = adapted(moved=False)
    load_checkpoint(backbone, tmp_path / "model.safetensors")
    torch.testing.assert_close(backbone.features(images()), start.features(images()))
    again = adapted(moved=False)
    load_without_adapters(again, start.state_dict())
    torch.testing.assert_close(again.features(images()), start.features(images()))
    with pytest.raises(RuntimeError, match="Missing key"):
        load_without_adapters(again, {})


def test_units_gradients_of_adapters_are_found_in_one_pass() -> None:
    backbone = adapted().double()
    for name, value in backbone.named_parameters():
        value.requires_grad_(name in adapter_names(backbone))
    batch = images(4).double()

    def losses() -> Tensor:
        return backbone.features(batch).square().mean(dim=1)

    shares = collected_shares(backbone, losses, 4)
    for name, value in backbone.named_parameters():
        if value.requires_grad:
            alone = torch.stack([torch.autograd.grad(losses()[unit], value)[0].flatten() for unit in range(4)])
            torch.testing.assert_close(shares[value].rows().values, alone, msg=name)


def test_a_network_without_linear_layers_takes_none() -> None:
    with pytest.raises(PlanError, match="resnet18 has no linear layers; use last-K or norm-bias"):
        add_adapters(build_backbone(BackboneSpec("resnet18"), seed=0), 4, 0)


def test_a_layer_that_may_not_train_gets_no_adapter() -> None:
    backbone = build_backbone(VIT, seed=0)
    backbone.fix(frozenset({"timm.blocks.0.attn.qkv.weight"}))
    add_adapters(backbone, rank=3, seed=1)
    assert type(backbone.timm.blocks[0].attn.qkv) is torch.nn.Linear
    assert isinstance(backbone.timm.blocks[1].attn.qkv, LowRankLinear)
