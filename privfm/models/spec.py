"""Which backbone: a timm name and what is changed about it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT_BACKBONE", "BackboneSpec"]


@dataclass(frozen=True)
class BackboneSpec:
    """A timm model's name and the few numbers that privfm lets a plan change.

    Args:
        name: a bare name from `timm.list_models()`.
        image_size: height and width of the images, pixels.
        patch_size: side of a patch, pixels; None leaves the model's own.
        channels: colour channels of the images, 1 or 3.
        width, depth, heads: embedding width, number of blocks and attention heads, for models that take them
            (`embed_dim`, `depth`, `num_heads`); None leaves the model's own.

    >>> BackboneSpec("resnet18", image_size=64).channels
    1
    """

    name: str
    image_size: int = 32
    patch_size: int | None = None
    channels: int = 1
    width: int | None = None
    depth: int | None = None
    heads: int | None = None

    def __post_init__(self) -> None:
        for key in ("image_size", "channels", "patch_size", "width", "depth", "heads"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value} must be positive")


DEFAULT_BACKBONE = BackboneSpec(
    "vit_tiny_patch16_224", image_size=32, patch_size=4, channels=1, width=64, depth=4, heads=2
)
