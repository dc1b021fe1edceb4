"""Integers modulo 2^16, 2^24 or 2^32: packed for the wire, and lifted back to signed numbers.

A block in a ring of 16 or 32 bits is one plane of little-endian words. One of 24 bits is two planes, first every
entry's low 16 bits, then every entry's high 8, so that packing is two straight copies and no byte is padding.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, UInt8, UInt32

__all__ = ["add_packed", "lift", "pack", "packed_bytes"]

# ring bits: (shift, type) of each plane
_PLANES: dict[int, tuple[tuple[int, str], ...]] = {
    16: ((0, "<u2"),),
    24: ((0, "<u2"), (16, "u1")),
    32: ((0, "<u4"),),
}


def packed_bytes(entries: int, ring_bits: int) -> int:
    """What a block of that many entries takes."""
    return entries * ring_bits // 8


def pack(words: UInt32[np.ndarray, " c"], ring_bits: int, out: UInt8[np.ndarray, " b"]) -> None:
    """Write the words modulo the ring as one block. Overwrites `words`.

    >>> out = np.empty(6, np.uint8)
    >>> pack(np.array([0x010203, 0xFF040506], np.uint32), 24, out)
    >>> bytes(out).hex()
    '030206050104'
    """
    offset = 0
    for shift, dtype in _PLANES[ring_bits]:
        if shift:
            np.right_shift(words, shift, out=words)
        plane = out[offset : offset + len(words) * np.dtype(dtype).itemsize].view(dtype)
        np.copyto(plane, words, casting="unsafe")
        offset += plane.nbytes


def add_packed(
    block: UInt8[np.ndarray, " b"], ring_bits: int, total: UInt32[np.ndarray, " c"], scratch: UInt32[np.ndarray, " c"]
) -> None:
    """Add one block to a total, modulo 2^32. Overwrites `scratch`, which the caller keeps between blocks."""
    offset = 0
    for shift, dtype in _PLANES[ring_bits]:
        plane = block[offset : offset + len(total) * np.dtype(dtype).itemsize].view(dtype)
        np.copyto(scratch, plane)
        if shift:
            np.left_shift(scratch, shift, out=scratch)
        np.add(total, scratch, out=total)
        offset += plane.nbytes


def lift(words: UInt32[np.ndarray, " c"], ring_bits: int, out: Int32[np.ndarray, " c"]) -> None:
    """Write words modulo the ring as signed numbers from -R/2 to R/2 - 1.

    >>> out = np.empty(2, np.int32)
    >>> lift(np.array([1, 2**24 - 1], np.uint32), 24, out)
    >>> out
    array([ 1, -1], dtype=int32)
    """
    unused = 32 - ring_bits
    np.left_shift(words, unused, out=out.view(np.uint32))
    np.right_shift(out, unused, out=out)
