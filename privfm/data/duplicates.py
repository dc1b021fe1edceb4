"""Images that show nearly the same thing, found by perceptual hashes without comparing every pair.

Two images whose 64-bit hashes differ in at most k bits agree in at least one of k + 1 bands of bits (pigeonhole), so
only images that share a band are compared; a small thumbnail then confirms the pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, UInt64
from numpy.typing import NDArray

from privfm.data.resizing import resize

__all__ = ["difference_hash", "near_duplicates", "thumbnail"]

_THUMBNAIL = 16
#: Correlation of thumbnails from which a suspected pair counts.
_ALIKE = 0.985
#: How many neighbours in a band an image is compared with. Only where hundreds of images share a band's bits, as when
#: all of them are nearly black, can this leave a pair out.
_MAX_NEIGHBOURS = 500
#: Pairs compared at once, so that memory stays bounded.
_CHUNK_PAIRS = 2**20


def difference_hash(image: Float32[np.ndarray, "h w"]) -> np.uint64:
    """64 bits: whether brightness rises from each cell to its right neighbour on a grid of 8 by 9.

    Source: Krawetz 2013, "Kind of like that".

    Example:
        >>> int(difference_hash(np.tile(np.linspace(0, 1, 90, dtype=np.float32), (80, 1)))) == 2**64 - 1
        True
    """
    small = resize(image, 8, 9)
    # Rounding differs between encodings of one image; a rise smaller than this is none.
    bits = (small[:, 1:] - small[:, :-1] > 1e-4).reshape(-1)
    return np.uint64(int.from_bytes(np.packbits(bits).tobytes(), "big"))


def thumbnail(image: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, 256]:
    """A 16-pixel copy with mean 0 and variance 1, flattened: it confirms what a hash suspects."""
    small = resize(image, _THUMBNAIL, _THUMBNAIL).reshape(-1)
    centred = small - small.mean()
    normed: NDArray[np.float32] = centred / (centred.std() + np.float32(1e-6))
    return normed


def near_duplicates(
    hashes: UInt64[np.ndarray, " n"],
    thumbnails: Float32[np.ndarray, "n 256"],
    groups: NDArray[np.int64],
    *,
    max_bits: int = 4,
) -> NDArray[np.int64]:
    """Pairs [pairs 2] of images from different groups that look nearly alike, each once, in ascending order.

    Args:
        hashes: from difference_hash.
        thumbnails: from thumbnail.
        groups: [n] whose images are not compared with each other (a patient's own frames resemble each other).
        max_bits: largest number of differing hash bits.
    """
    found = [_confirmed(pairs, hashes, thumbnails, groups, max_bits) for pairs in _candidates(hashes, max_bits + 1)]
    pairs = np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)
    return np.unique(pairs, axis=0)


def _candidates(hashes: NDArray[np.uint64], bands: int) -> Iterator[NDArray[np.int64]]:
    """Chunks of pairs (lower index first) that agree in a band of bits."""
    edges = np.linspace(0, 64, bands + 1).astype(np.int64)
    for low, high in pairwise(edges.tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.lexsort((hashes, band))
        yield from _pairs_within_runs(order, band[order])


def _pairs_within_runs(order: NDArray[np.int64], band: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Pairs of positions in a sorted array that hold equal values, by their distance in the order."""
    position, ends = np.arange(len(band)), np.searchsorted(band, band, side="right")
    for distance in range(1, _MAX_NEIGHBOURS + 1):
        position = position[position + distance < ends[position]]
        for start in range(0, len(position), _CHUNK_PAIRS):
            first = position[start : start + _CHUNK_PAIRS]
            yield np.sort(np.stack([order[first], order[first + distance]], axis=1), axis=1)


def _confirmed(
    pairs: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    thumbnails: NDArray[np.float32],
    groups: NDArray[np.int64],
    max_bits: int,
) -> NDArray[np.int64]:
    pairs = pairs[groups[pairs[:, 0]] != groups[pairs[:, 1]]]
    bits = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    pairs = pairs[bits <= max_bits]
    correlation = (thumbnails[pairs[:, 0]] * thumbnails[pairs[:, 1]]).mean(axis=1)
    confirmed: NDArray[np.int64] = pairs[correlation >= _ALIKE]
    return confirmed
