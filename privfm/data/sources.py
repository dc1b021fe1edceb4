"""Which source of images a name on the command line means."""

from __future__ import annotations

from privfm.data.imageset import ImageSet
from privfm.data.tiles import load_tiles
from privfm.errors import DataError

__all__ = ["load_images"]


def load_images(
    source: str,
    *,
    image_size: int,
    channels: int = 1,
    unit: str = "patient",
    seed: int = 0,
    patients: int | None = None,
) -> ImageSet:
    """The images that `source` names: "tiles"."""
    if source != "tiles":
        raise DataError(f"{source}: not a source of images; use tiles")
    images = load_tiles(image_size, channels)
    return images.with_image_units() if unit == "image" else images
