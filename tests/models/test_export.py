"""What is written loads with plain timm; what is read is checked."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from privfm.errors import ModelError
from privfm.models import BackboneSpec, build_backbone, load_backbone, load_checkpoint, save_backbone
from privfm.models import export as export_module
from privfm.models.torchvision_shim import timm

SPECS = [
    BackboneSpec("vit_tiny_patch16_224", patch_size=4, width=64, depth=2, heads=2),
    BackboneSpec("test_convnext", channels=3),
    BackboneSpec("test_resnet"),
    BackboneSpec("swin_tiny_patch4_window7_224", width=24),
]
VIT = SPECS[0]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_plain_timm_loads_it_strictly(spec: BackboneSpec, tmp_path: Path) -> None:
    backbone = build_backbone(spec, seed=1).eval()
    save_backbone(backbone, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    model = timm.create_model(config["architecture"], **config["model_args"])
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    images = torch.randn(2, spec.channels, 32, 32)
    torch.testing.assert_close(model.eval()(images), backbone.features(images))


def test_timm_reads_the_directory_itself(tmp_path: Path) -> None:
    backbone = build_backbone(VIT, seed=1).eval()
    save_backbone(backbone, tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(model(images), backbone.features(images))
    assert timm.data.resolve_model_data_config(model)["input_size"] == (1, 32, 32)


@pytest.mark.parametrize("part", ["", "model.safetensors", "config.json"])
def test_round_trip(part: str, tmp_path: Path) -> None:
    backbone = build_backbone(VIT, seed=1)
    save_backbone(backbone, tmp_path)
    loaded = load_backbone(tmp_path / part)
    assert loaded.spec == VIT
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_nothing_but_the_two_files_is_left(tmp_path: Path) -> None:
    save_backbone(build_backbone(VIT, seed=1), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def broken_checkpoints() -> dict[str, str]:
    return {
        "missing": "has no weight blocks.0.attn.qkv.weight",
        "unknown": "weight surprise is unknown",
        "misshapen": r"weight norm.weight has shape \(3,\)",
        "not finite": "weight norm.weight is not finite",
    }


@pytest.mark.parametrize("fault", broken_checkpoints())
def test_a_checkpoint_that_does_not_fit_is_refused(fault: str, tmp_path: Path) -> None:
    backbone = build_backbone(VIT, seed=1)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    tensors = dict(backbone.timm.state_dict())
    if fault == "missing":
        del tensors["blocks.0.attn.qkv.weight"]
    elif fault == "unknown":
        tensors["surprise"] = torch.zeros(1)
    elif fault == "misshapen":
        tensors["norm.weight"] = torch.zeros(3)
    else:
        tensors["norm.weight"] = torch.full((64,), float("nan"))
    save_file(tensors, tmp_path / "start.safetensors")
    with pytest.raises(ModelError, match=broken_checkpoints()[fault]) as refusal:
        load_checkpoint(backbone, tmp_path / "start.safetensors")
    assert "start.safetensors" in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_other_formats_are_refused(tmp_path: Path) -> None:
    backbone = build_backbone(VIT, seed=1)
    torch.save({}, tmp_path / "start.pth")
    (tmp_path / "torn.safetensors").write_bytes(struct.pack("<Q", 10**6) + b"{}")
    (tmp_path / "folder.safetensors").mkdir()
    for name, reason in [
        ("start.pth", "must be a .safetensors file"),
        ("torn.safetensors", "not a readable safetensors file"),
        ("folder.safetensors", "not a readable"),
        ("none.safetensors", "no such file"),
    ]:
        with pytest.raises(ModelError, match=reason):
            load_checkpoint(backbone, tmp_path / name)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone(VIT, seed=1)
    save_backbone(backbone, tmp_path)
    monkeypatch.setattr(export_module, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match="limit of 1000"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"privfm": {"name": 3}}', '{"privfm": 1}'])
def test_a_config_of_another_kind_is_refused(content: str, tmp_path: Path) -> None:
    save_backbone(build_backbone(VIT, seed=1), tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config.json"):
        load_backbone(tmp_path)


def test_a_real_vit_checkpoint_is_adapted(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", embed_dim=64, depth=2, num_heads=2, img_size=64, num_classes=7)
    save_file(dict(theirs.state_dict()), tmp_path / "start.safetensors")
    backbone = build_backbone(VIT, seed=1)
    notes = load_checkpoint(backbone, tmp_path / "start.safetensors")
    changed = sorted(note.split(":")[0] for note in notes)
    first = "patch_embed.proj.weight"
    assert changed == ["cls_token", "head.bias", "head.weight", first, first, "pos_embed"]
    ours, start = backbone.timm.state_dict(), theirs.state_dict()
    assert torch.equal(ours["blocks.1.mlp.fc1.weight"], start["blocks.1.mlp.fc1.weight"])
    assert ours["pos_embed"].shape == (1, 64, 64)


def test_positions_of_the_same_grid_are_kept_exactly(tmp_path: Path) -> None:
    theirs = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=64, depth=2, num_heads=2, img_size=32, patch_size=4, in_chans=1, num_classes=7
    )
    save_file(dict(theirs.state_dict()), tmp_path / "start.safetensors")
    backbone = build_backbone(VIT, seed=1)
    load_checkpoint(backbone, tmp_path / "start.safetensors")
    torch.testing.assert_close(backbone.timm.pos_embed, theirs.pos_embed[:, 1:])
