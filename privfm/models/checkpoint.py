"""Fitting a real checkpoint to a backbone of another image size, patch size or number of channels."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from privfm.models.backbone import Backbone
from privfm.models.lora import merged_state
from privfm.models.torchvision_shim import timm

__all__ = ["adapt"]

_TOKENS = ("cls_token", "reg_token")


def adapt(backbone: Backbone, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors as the backbone needs them as far as that is known, and a line for each change.

    What does not fit and cannot be resampled stays as it is, for a strict load to complain about.
    """
    fitted, notes = dict(tensors), []
    expected = merged_state(backbone.timm)
    for prefix in _classifiers(backbone):
        for name in [name for name in fitted if name.startswith(f"{prefix}.") and name not in expected]:
            del fitted[name]
            notes.append(f"{name}: left out, a backbone has no classifier")
    prefix_tokens = 0
    for name in _TOKENS:
        if name in fitted and name not in expected:
            prefix_tokens += fitted.pop(name).shape[1]
            notes.append(f"{name}: left out, features are means over patches")
    notes += _fit_positions(backbone, fitted, expected, prefix_tokens)
    notes += _fit_first_layer(backbone, fitted, expected)
    return fitted, tuple(notes)


def _classifiers(backbone: Backbone) -> tuple[str, ...]:
    named: Any = backbone.timm.pretrained_cfg.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _fit_positions(
    backbone: Backbone, fitted: dict[str, Tensor], expected: dict[str, Tensor], dropped: int
) -> list[str]:
    have, want = fitted.get("pos_embed"), expected.get("pos_embed")
    if have is None or want is None or have.dim() != 3 or want.dim() != 3 or have.shape == want.shape:
        return []
    kept = have.shape[1] - dropped
    if math.isqrt(kept) ** 2 == kept:  # the left-out tokens had positions of their own
        have = have[:, dropped:]
    fitted["pos_embed"] = timm.layers.resample_abs_pos_embed(
        have, list(backbone.grid), num_prefix_tokens=want.shape[1] - backbone.grid[0] * backbone.grid[1]
    )
    return [f"pos_embed: resampled to {backbone.grid[0]}x{backbone.grid[1]} patches"]


def _fit_first_layer(backbone: Backbone, fitted: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    first: Any = backbone.timm.pretrained_cfg.get("first_conv")
    name = f"{first}.weight"
    if not isinstance(first, str) or name not in fitted or name not in expected:
        return []
    notes, channels = [], backbone.spec.channels
    if fitted[name].dim() == 4 and fitted[name].shape[1] != channels:
        fitted[name] = timm.models.adapt_input_conv(channels, fitted[name])
        notes.append(f"{name}: adapted to {channels} channels")
    size = list(expected[name].shape[2:])
    if first == "patch_embed.proj" and fitted[name].dim() == 4 and list(fitted[name].shape[2:]) != size:
        fitted[name] = timm.layers.resample_patch_embed(fitted[name], size)
        notes.append(f"{name}: resampled to {size[0]}-pixel patches")
    return notes
