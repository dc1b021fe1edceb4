"""timm backbones that treat every image alone."""

from __future__ import annotations

from privfm.models.backbone import Backbone, build_backbone
from privfm.models.positions import sincos_positions
from privfm.models.spec import DEFAULT_BACKBONE, BackboneSpec

__all__ = ["DEFAULT_BACKBONE", "Backbone", "BackboneSpec", "build_backbone", "sincos_positions"]
