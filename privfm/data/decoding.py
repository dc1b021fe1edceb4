"""Image files to arrays: 8 and 16 bits, palettes, transparency, orientation tags, pages, and damage of every kind."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps

from privfm.data.pixels import Frame
from privfm.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "Header",
    "quiet_decoders",
    "read_header",
    "read_image",
    "read_mask",
    "refuse_blank",
    "to_unit_range",
]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
#: Pillow warns above this many pixels a frame; here they are refused, since a small file can claim any size.
MAX_PIXELS = 89_478_485
MAX_PAGES = 10_000
_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
#: What Pillow's decoders raise on damaged files.
_DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silences what decoders say about odd files on the side: what matters is raised as a DataError.

    Filters are shared by all threads, so this belongs around a pool of decoding threads and not inside one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Header:
    """What a file says about its images before any pixel is read."""

    mode: str
    width: int  # pixels, as shown after the orientation tag
    height: int
    pages: int


def read_header(path: Path) -> Header:
    """Mode, size and number of pages of an image file.

    Raises:
        DataError: naming the file, when it is empty, no image, or claims an absurd size.
    """
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty; replace it or leave it out")
        with Image.open(path) as image:
            _check_pixels(path, image.width, image.height)
            pages = _page_count(path, image)
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            width, height = (image.height, image.width) if turned else (image.width, image.height)
            return Header(image.mode, width, height, pages)
    except _DAMAGE as error:
        if path.suffix.lower() in _TIFF_SUFFIXES and not isinstance(error, Image.DecompressionBombError):
            return _tiff_header(path)
        raise _unreadable(path, error) from error


def read_image(frame: Frame, side: int) -> Float32[np.ndarray, "channels height width"]:
    """One frame as 1 or 3 channels in [0, 1], turned upright, transparent parts black.

    Grey keeps its depth: 16-bit values are divided by 65535. Colour of 16 bits may be read at 8. Values of other types
    are stretched between their extremes unless they already lie in [0, 1].

    Args:
        frame: which page of which file.
        side: what the image will be resized to; much larger ones are decoded or averaged at a fraction of their size.

    Raises:
        DataError: naming the file, when it cannot be read or a single image in it shows nothing.
    """
    try:
        with Image.open(frame.path) as image:
            _check_pixels(frame.path, image.width, image.height)
            if frame.index:
                image.seek(frame.index)
            image.draft(None, (2 * side, 2 * side))
            pixels = _pillow_pixels(image, side)
    except _DAMAGE as error:
        if frame.path.suffix.lower() not in _TIFF_SUFFIXES:
            raise _unreadable(frame.path, error) from error
        pixels = _tiff_pixels(frame)
    return refuse_blank(pixels, frame)


def read_mask(path: Path) -> UInt8[np.ndarray, "height width"]:
    """A class mask: palette indices or grey values as classes; a mask of 0 and 255 alone means 0 and 1.

    Raises:
        DataError: naming the file, when it cannot be read or is a colour image.
    """
    try:
        with Image.open(path) as image:
            _check_pixels(path, image.width, image.height)
            values = np.asarray(ImageOps.exif_transpose(image))
    except _DAMAGE as error:
        raise _unreadable(path, error) from error
    if values.ndim == 3 and (values == values[..., :1])[..., :3].all():
        values = values[..., 0]
    if values.ndim != 2 or values.min() < 0 or values.max() > 255:
        raise DataError(f"{path}: a mask has one class a pixel, at most 255; save it as a grey or palette image")
    mask = values.astype(np.uint8)
    return mask // np.uint8(255) if set(np.unique(mask).tolist()) == {0, 255} else mask


def refuse_blank(pixels: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    """The same pixels, unless they are a file's only image and all alike; a stack may well end in blank slices."""
    if frame.of == 1 and (pixels == pixels.flat[0]).all():
        raise DataError(f"{frame.path}: the image is blank, every pixel alike; leave it out")
    return pixels


def to_unit_range(values: NDArray[Any]) -> NDArray[np.float32]:
    """Stored values in [0, 1]: unsigned 8 and 16 bits by their range, others stretched unless they lie there already.

    Raises:
        ValueError: when a value is not finite.

    Example:
        >>> to_unit_range(np.array([0, 65535], np.uint16))
        array([0., 1.], dtype=float32)
    """
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if values.dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
        unit: NDArray[np.float32] = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
        return unit
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError("values that are not finite")
    low, high = float(wide.min()), float(wide.max())
    if np.issubdtype(values.dtype, np.floating) and low >= 0.0 and high <= 1.0:
        return wide.astype(np.float32)
    return ((wide - low) / ((high - low) or 1.0)).astype(np.float32)


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason = "the file is missing" if isinstance(error, FileNotFoundError) else "not a readable image"
    if isinstance(error, Image.DecompressionBombError):
        reason = f"more than {MAX_PIXELS:,} pixels"
    elif isinstance(error, PermissionError):
        reason = "no permission to read it"
    return DataError(f"{path}: {reason}; replace it or leave it out")


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: more than {MAX_PIXELS:,} pixels; replace it or leave it out")
    if width * height == 0:
        raise DataError(f"{path}: the image has no pixels; replace it or leave it out")


def _page_count(path: Path, image: Image.Image) -> int:
    pages = int(getattr(image, "n_frames", 1)) if path.suffix.lower() in _TIFF_SUFFIXES else 1
    if pages > MAX_PAGES:
        raise DataError(f"{path}: {pages:,} pages, more than {MAX_PAGES:,}; split the file")
    return pages


def _pillow_pixels(image: Image.Image, side: int) -> NDArray[np.float32]:
    inverted = image.mode.startswith("I;16") and _photometric(image) == _WHITE_IS_ZERO
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "L" and not upright.has_transparency_data:
        return to_unit_range(np.asarray(_reduced(upright, side)))[None]
    if upright.mode in ("1", "F", "I") or upright.mode.startswith("I;16"):
        values = np.asarray(upright)
        if upright.mode == "I" and values.min() >= 0 and values.max() <= 65535:
            values = values.astype(np.uint16)
        grey = to_unit_range(values)[None]
        return np.float32(1) - grey if inverted else grey
    return _colour(upright, side)


def _photometric(image: Image.Image) -> int | None:
    tags = getattr(image, "tag_v2", None)
    return None if tags is None else tags.get(_TIFF_PHOTOMETRIC)


def _reduced(image: Image.Image, side: int) -> Image.Image:
    """A large image averaged over whole blocks, still several times the size that is needed: saves memory and time."""
    factor = min(image.size) // (4 * side)
    return image.reduce(factor) if factor > 1 else image


def _colour(image: Image.Image, side: int) -> NDArray[np.float32]:
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        ground = Image.new("RGBA", seen.size, (0, 0, 0, 255))
        ground.alpha_composite(seen)
        image = ground
    rgb = np.asarray(_reduced(image.convert("RGB"), side))
    return to_unit_range(np.moveaxis(rgb, -1, 0))


def _tiff_header(path: Path) -> Header:
    """For depths that Pillow does not know, as 16-bit colour."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0].aspage()
            _check_pixels(path, page.imagewidth, page.imagelength)
            if len(tiff.pages) > MAX_PAGES:
                raise DataError(f"{path}: more than {MAX_PAGES:,} pages; split the file")
            mode = f"{page.dtype}x{page.samplesperpixel}"
            return Header(mode, page.imagewidth, page.imagelength, len(tiff.pages))
    except (*_DAMAGE, AttributeError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def _tiff_pixels(frame: Frame) -> NDArray[np.float32]:
    import tifffile

    try:
        with tifffile.TiffFile(frame.path) as tiff:
            page = tiff.pages[frame.index].aspage()
            _check_pixels(frame.path, page.imagewidth, page.imagelength)
            values = to_unit_range(page.asarray())
            inverted = page.photometric == _WHITE_IS_ZERO
            planes = {"YX": "YX", "YXS": "YXS", "SYX": "SYX"}[page.axes]
    except (*_DAMAGE, AttributeError, RuntimeError) as error:
        raise _unreadable(frame.path, error) from error
    if planes == "YX":
        return np.float32(1) - values[None] if inverted else values[None]
    stacked = np.moveaxis(values, -1, 0) if planes == "YXS" else values
    return stacked[:3] if len(stacked) >= 3 else stacked[:1]
