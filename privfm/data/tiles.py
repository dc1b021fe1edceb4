"""The built-in set `tiles`: real photographs that ship with scikit-image, cut into small tiles.

Whole 128-pixel blocks stand for patients and the photograph is the class, so that tiles of one patient look alike and
tiles of one class come from several patients. Two of the photographs are medical: an eye's fundus and a stained section
of a colon. At the default of 32 pixels this makes 4,532 tiles of 339 patients in 16 classes.

The choice of photographs leaves out the second half of a stereo pair, whose tiles would repeat the first half's,
drawings, and photographs of little content. Only files inside the installed wheel are read; nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from privfm.data.imageset import ImageSet, index_names
from privfm.data.pixels import ArrayPixels, ResizedPixels, to_channels
from privfm.errors import DataError
from privfm.ids import PatientId

__all__ = ["load_tiles"]

_BLOCK = 128
_SIDES = (8, 16, 32, 64, 128)
#: Standard deviation of luminance in [0, 1] at or below which a tile shows nothing but a flat background.
_FLAT = 0.01
_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)


def load_tiles(image_size: int = 32, channels: int = 1) -> ImageSet:
    """The built-in tiles as images of image_size pixels.

    Tiles are cut at the smallest of 8, 16, 32, 64 and 128 pixels that is not below image_size and then shrunk to it; an
    image_size above 128 enlarges whole blocks. Flat tiles are left out.

    Raises:
        DataError: when the installed scikit-image lacks one of the photographs.

    Example:
        >>> tiles = load_tiles()
        >>> len(tiles), len(tiles.patients), len(tiles.class_names)
        (4532, 339, 16)
    """
    side = next((side for side in _SIDES if side >= image_size), _BLOCK)
    folder = _photograph_folder()
    tiles, names, classes = [], [], []
    for photograph in _PHOTOGRAPHS:
        kept, blocks = _cut(_read_rgb(folder / photograph), side)
        title = photograph.partition(".")[0]
        tiles.append(kept)
        names += [f"{title}-{row:02d}-{column:02d}" for row, column in blocks]
        classes += [title] * len(blocks)
    patients, patient_of = index_names(names)
    class_names, labels = index_names(classes)
    return ImageSet(
        name="tiles",
        pixels=ResizedPixels(ArrayPixels(np.concatenate(tiles)), image_size, channels),
        patients=tuple(map(PatientId, patients)),
        patient_of=patient_of,
        class_names=class_names,
        labels=labels,
        public=True,
    )


def _photograph_folder() -> Path:
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise DataError("the built-in set tiles needs scikit-image; pip install scikit-image")
    return Path(found.origin).parent / "data"


def _read_rgb(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise DataError(
            f"{path} is missing or damaged, and the built-in set tiles needs it; reinstall scikit-image"
        ) from error


def _cut(image: UInt8[np.ndarray, "h w 3"], side: int) -> tuple[UInt8[np.ndarray, "n 3 side side"], list[list[int]]]:
    """Tiles from the whole blocks of an image, flat ones left out, and the block (row, column) of each."""
    rows, columns, per_block = image.shape[0] // _BLOCK, image.shape[1] // _BLOCK, _BLOCK // side
    whole = image[: rows * _BLOCK, : columns * _BLOCK]
    grid = whole.reshape(rows, per_block, side, columns, per_block, side, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    tiles = grid.reshape(-1, 3, side, side)
    blocks = np.indices((rows, columns)).reshape(2, -1).T.repeat(per_block**2, axis=0)
    grey = to_channels(tiles.astype(np.float32) / np.float32(255), 1)
    kept = grey.std(axis=(1, 2, 3), dtype=np.float64) > _FLAT
    return tiles[kept], blocks[kept].tolist()
