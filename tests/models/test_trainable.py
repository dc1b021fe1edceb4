from __future__ import annotations

import pytest
import torch
from torch import nn

from privfm.errors import PlanError
from privfm.models import Backbone, BackboneSpec, build_backbone, count_trainable, set_trainable


class WithHead(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.fixed = frozenset(f"backbone.{name}" for name in backbone.fixed)
        self.head = nn.Linear(backbone.width, 2)


def network(name: str = "test_vit") -> WithHead:
    backbone = build_backbone(BackboneSpec(name), seed=0)
    backbone.fix(frozenset({"timm.pos_embed"} & {key for key, _ in backbone.named_parameters()}))
    return WithHead(backbone)


def trained(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


def test_all_trains_everything_that_is_not_fixed() -> None:
    model = network()
    count = set_trainable(model, "all")
    assert trained(model) == {name for name, _ in model.named_parameters()} - model.fixed
    assert model.fixed == {"backbone.timm.pos_embed"}
    assert count == count_trainable(model) == sum(value.numel() for value in model.parameters() if value.requires_grad)


def test_last_blocks_take_the_norm_behind_them() -> None:
    model = network()
    set_trainable(model, "last-2")
    prefixes = {".".join(name.split(".")[2:4]) for name in trained(model)}
    assert prefixes == {"blocks.4", "blocks.5", "norm.weight", "norm.bias"}


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet"])
def test_last_block_of_a_convolutional_network_has_weights(name: str) -> None:
    model = network(name)
    set_trainable(model, "last-1")
    shapes = {key: value.dim() for key, value in model.named_parameters()}
    assert any(shapes[key] == 4 for key in trained(model))
    assert not any("stem" in key or "conv1.0" in key for key in trained(model))


def test_norm_and_bias_are_vectors() -> None:
    model = network()
    set_trainable(model, "norm-bias")
    shapes = {name: value.shape for name, value in model.named_parameters()}
    assert all(len(shapes[name]) == 1 for name in trained(model))
    assert "backbone.timm.blocks.0.norm1.weight" in trained(model)
    assert "backbone.timm.blocks.0.attn.qkv.bias" in trained(model)


def test_the_head_trains_with_all_or_when_told() -> None:
    model = network()
    for which, told, expected in [
        ("all", None, True),
        ("all", False, False),
        ("last-1", None, False),
        ("last-1", True, True),
    ]:
        set_trainable(model, which, train_head=told)
        assert model.head.weight.requires_grad is expected


def test_fixed_parameters_stay_fixed_through_changes_of_mind() -> None:
    model = network()
    for which in ("norm-bias", "last-6", "all"):
        set_trainable(model, which)
        assert not model.backbone.timm.pos_embed.requires_grad


@pytest.mark.parametrize(
    ("which", "reason"),
    [
        ("some", "use all, norm-bias, lora or last-K"),
        ("last-0", "last-K"),
        ("last-7", "has 6 blocks"),
        ("last-", "last-K"),
    ],
)
def test_refused(which: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        set_trainable(network(), which)


def test_a_model_without_an_order_of_blocks_is_refused() -> None:
    model = network()
    model.backbone.timm.group_matcher = None
    with pytest.raises(PlanError, match="norm-bias"):
        set_trainable(model, "last-1")


def test_needs_a_backbone() -> None:
    with pytest.raises(TypeError, match="Linear"):
        set_trainable(nn.Linear(2, 2), "all")


def test_values_are_left_alone() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_trainable(model, "last-1")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
