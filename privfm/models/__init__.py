"""timm backbones that treat every image alone."""

from __future__ import annotations

from privfm.models.backbone import Backbone, build_backbone
from privfm.models.export import load_backbone, load_checkpoint, read_tensors, save_backbone
from privfm.models.lora import add_adapters, load_without_adapters, merged_state
from privfm.models.positions import sincos_positions
from privfm.models.spec import DEFAULT_BACKBONE, BackboneSpec
from privfm.models.trainable import count_trainable, set_trainable

__all__ = [
    "DEFAULT_BACKBONE",
    "Backbone",
    "BackboneSpec",
    "add_adapters",
    "build_backbone",
    "count_trainable",
    "load_backbone",
    "load_checkpoint",
    "load_without_adapters",
    "merged_state",
    "read_tensors",
    "save_backbone",
    "set_trainable",
    "sincos_positions",
]
