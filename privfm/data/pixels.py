"""Pixels at the run's size, wherever they come from: an array, files decoded on demand, or a selection of either."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from privfm.data.resizing import resize

__all__ = ["ArrayPixels", "Decoder", "FilePixels", "Frame", "PickedPixels", "Pixels", "ResizedPixels", "to_channels"]

#: Red, green and blue in luminance, after ITU-R BT.709.
_LUMINANCE = (np.float32(0.2125), np.float32(0.7154), np.float32(0.0721))


@runtime_checkable
class Pixels(Protocol):
    """Images of one shape, loaded by index."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        ...

    def __len__(self) -> int: ...

    def load(self, indices: NDArray[np.int64]) -> Float[np.ndarray, "b c h w"]:
        """The images at these indices, float32 in [0, 1]."""
        ...


def to_channels(image: Float[np.ndarray, "*batch c h w"], channels: int) -> Float[np.ndarray, "*batch c2 h w"]:
    """The image with 1 channel (luminance) or 3 (grey repeated).

    Example:
        >>> to_channels(np.ones((3, 2, 2), np.float32), 1).shape
        (1, 2, 2)
    """
    have = image.shape[-3]
    if have == channels:
        return image
    if (have, channels) == (3, 1):
        red, green, blue = (weight * plane for weight, plane in zip(_LUMINANCE, np.moveaxis(image, -3, 0), strict=True))
        grey: NDArray[np.float32] = (red + green + blue)[..., None, :, :]
        return grey
    if (have, channels) == (1, 3):
        return np.repeat(image, 3, axis=-3)
    raise ValueError(f"channels={channels} from {have}: only 1 and 3 can be made from each other")


@dataclass(frozen=True, eq=False)
class ArrayPixels:
    """Images that are in memory, as float32 in [0, 1] or as uint8, which is divided by 255 on loading.

    Example:
        >>> pixels = ArrayPixels(np.full((2, 1, 4, 4), 255, np.uint8))
        >>> pixels.load(np.array([1])).max()
        np.float32(1.0)
    """

    array: Float[np.ndarray, "n c h w"] | UInt8[np.ndarray, "n c h w"]

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.array.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.array)

    def load(self, indices: NDArray[np.int64]) -> Float[np.ndarray, "b c h w"]:
        chosen = self.array[indices]
        if chosen.dtype == np.uint8:
            return chosen.astype(np.float32) / np.float32(255)
        return chosen.astype(np.float32)


@dataclass(frozen=True)
class Frame:
    """One image in a file: page or frame number `index` of `of`."""

    path: Path
    index: int = 0
    of: int = 1


#: Reads one frame as float32 [channels height width] in [0, 1] at its own size; raises DataError naming the file. The
#: second argument is the side in pixels that will be needed, so that a decoder may skip detail.
Decoder = Callable[[Frame, int], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class FilePixels:
    """Images decoded from files when asked for, resized, and kept as long as `cache_bytes` lasts.

    Images are drawn at random, so what entered the cache first stays: evicting would gain nothing.

    Args:
        frames: where each image lies.
        decode: reads one frame at its own size.
        image_size: side of the square images in pixels.
        channels: 1 or 3.
        cache_bytes: upper bound on the memory for decoded images.
    """

    frames: tuple[Frame, ...]
    decode: Decoder
    image_size: int
    channels: int = 1
    cache_bytes: int = 512 * 2**20
    _cache: dict[int, NDArray[np.float32]] = field(default_factory=dict, init=False, repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.image_size, self.image_size

    def __len__(self) -> int:
        return len(self.frames)

    def load(self, indices: NDArray[np.int64]) -> Float[np.ndarray, "b c h w"]:
        images = np.empty((len(indices), *self.shape), dtype=np.float32)
        for row, index in enumerate(indices.tolist()):
            images[row] = self._image(index)
        return images

    def read_all(self, threads: int = 4) -> None:
        """Decode every image once, filling the cache.

        Raises:
            DataError: naming the first file, in the order of `frames`, that cannot be read.
        """
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(self._image, range(len(self))):
                pass

    def _image(self, index: int) -> NDArray[np.float32]:
        kept = self._cache.get(index)
        if kept is not None:
            return kept
        decoded = self.decode(self.frames[index], self.image_size)
        image = resize(to_channels(decoded, self.channels), self.image_size, self.image_size)
        if (len(self._cache) + 1) * image.nbytes <= self.cache_bytes:
            self._cache[index] = np.array(image)
        return image


@dataclass(frozen=True, eq=False)
class ResizedPixels:
    """Another's images at another size and number of channels, resized whenever they are loaded."""

    whole: Pixels
    image_size: int
    channels: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.image_size, self.image_size

    def __len__(self) -> int:
        return len(self.whole)

    def load(self, indices: NDArray[np.int64]) -> Float[np.ndarray, "b c h w"]:
        images = to_channels(self.whole.load(indices), self.channels)
        clipped: NDArray[np.float32] = np.clip(resize(images, self.image_size, self.image_size), 0.0, 1.0)
        return clipped


@dataclass(frozen=True, eq=False)
class PickedPixels:
    """Some of another's images, in the given order."""

    whole: Pixels
    picked: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.whole.shape

    def __len__(self) -> int:
        return len(self.picked)

    def load(self, indices: NDArray[np.int64]) -> Float[np.ndarray, "b c h w"]:
        return self.whole.load(self.picked[indices])
