"""Laws that every accepted backbone keeps, and reasons for the refused ones."""

from __future__ import annotations

import pytest
import torch

from privfm.errors import ModelError
from privfm.models import DEFAULT_BACKBONE, Backbone, BackboneSpec, build_backbone
from privfm.models.torchvision_shim import timm

FAMILIES = {
    "default": DEFAULT_BACKBONE,
    "vit": BackboneSpec("test_vit", patch_size=8, depth=2),
    "vit with registers": BackboneSpec("test_vit4", patch_size=8, depth=2),
    "convnext": BackboneSpec("test_convnext"),
    "resnet": BackboneSpec("test_resnet"),
    "efficientnet": BackboneSpec("test_efficientnet_gn"),
    "swin": BackboneSpec("swin_tiny_patch4_window7_224", width=24),
}


@pytest.fixture(params=FAMILIES, scope="module")
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return build_backbone(FAMILIES[request.param], seed=3)


def images(spec: BackboneSpec, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, spec.channels, spec.image_size, spec.image_size, generator=generator)


def test_features_of_an_image_ignore_the_batch(backbone: Backbone) -> None:
    batch = images(backbone.spec, 3)
    moved = torch.cat([batch[:1], 5 * batch[1:].flip(0)])
    backbone.train()
    torch.testing.assert_close(backbone.features(batch)[:1], backbone.features(moved)[:1])
    torch.testing.assert_close(backbone.features(batch)[:1], backbone.features(batch[:1]), rtol=1e-4, atol=1e-5)


def test_shapes_are_as_announced(backbone: Backbone) -> None:
    batch = images(backbone.spec, 2)
    assert backbone.features(batch).shape == (2, backbone.width)
    assert backbone.feature_map(batch).shape == (2, backbone.map_width, *backbone.grid)


def test_nothing_in_place_random_or_batch_coupled_is_left(backbone: Backbone) -> None:
    for module in backbone.modules():
        assert getattr(module, "inplace", False) is not True
        assert getattr(module, "drop_prob", None) in (None, 0.0)
        assert not isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        assert not isinstance(module, torch.nn.Dropout) or module.p == 0.0


def test_fixed_names_are_the_parameters_without_gradient(backbone: Backbone) -> None:
    assert backbone.fixed == {name for name, value in backbone.named_parameters() if not value.requires_grad}


def test_same_seed_same_weights_and_the_global_state_is_untouched() -> None:
    spec = FAMILIES["vit"]
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, again, other = (build_backbone(spec, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_tokens_of_kept_patches_do_not_see_the_others() -> None:
    backbone = build_backbone(FAMILIES["vit with registers"], seed=0)
    batch = images(backbone.spec, 2)
    keep = torch.tensor([[0, 5], [3, 15]])
    blanked = torch.zeros_like(batch)
    for row, patches in enumerate(keep.tolist()):
        for patch in patches:
            top, left = 8 * (patch // 4), 8 * (patch % 4)
            blanked[row, :, top : top + 8, left : left + 8] = batch[row, :, top : top + 8, left : left + 8]
    torch.testing.assert_close(backbone.tokens(batch, keep), backbone.tokens(blanked, keep))
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(backbone.tokens(batch, everything), backbone.tokens(batch))
    torch.testing.assert_close(backbone.tokens(batch).mean(dim=1), backbone.features(batch))


def test_an_image_map_cannot_leave_patches_out() -> None:
    backbone = build_backbone(FAMILIES["convnext"], seed=0)
    with pytest.raises(ValueError, match="test_convnext"):
        backbone.tokens(images(backbone.spec, 1))


def test_a_residual_network_computes_what_timm_computes() -> None:
    backbone = build_backbone(FAMILIES["resnet"], seed=0)
    batch = images(backbone.spec, 2)
    torch.testing.assert_close(backbone.features(batch), backbone.timm(batch))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (BackboneSpec("vit_tinny_patch16_224"), "did you mean vit_tiny_patch16_224"),
        (BackboneSpec("hf_hub:timm/resnet18.a1_in1k"), "bare name"),
        (BackboneSpec("../weights/model.pth"), "bare name"),
        (BackboneSpec("vit_tiny_patch16_224.augreg_in21k"), "bare name"),
        (BackboneSpec("mobilenetv3_small_100"), "couples the images of a batch"),
        (BackboneSpec("test_resnet", patch_size=4), "takes no patch_size"),
        (BackboneSpec("test_convnext", width=32), "takes no width"),
        (BackboneSpec("test_vit", width=30, heads=4), "cannot build it"),
        (BackboneSpec("test_vit", image_size=8, patch_size=16), "test_vit"),
    ],
)
def test_refused_with_the_reason(spec: BackboneSpec, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as refusal:
        build_backbone(spec, seed=0)
    assert "\n" not in str(refusal.value)
    assert spec.name in str(refusal.value)


def test_weights_are_never_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **given: asked.append(given) or create(name, **given))
    build_backbone(BackboneSpec("test_vit", patch_size=8), seed=0)
    assert all(given["pretrained"] is False for given in asked)


@pytest.mark.parametrize("key", ["image_size", "channels", "patch_size", "width", "depth", "heads"])
def test_sizes_must_be_positive(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}=0"):
        BackboneSpec("test_vit", **{key: 0})
