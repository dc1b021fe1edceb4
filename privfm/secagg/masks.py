"""Masks: keystreams that look uniform to whoever lacks their key, and cancel in the sum of those who hold it.

A mask is AES-256 in counter mode over zeros, its bytes read as little-endian 32-bit words, one for each entry. It is
added or subtracted modulo 2^32; a narrower ring keeps the low bits, which are as uniform as the whole word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from jaxtyping import UInt32

from privfm.secagg.chunks import CHUNK, pieces
from privfm.secagg.encoding import check_bytes

__all__ = ["Mask", "keystream", "masked_pieces"]

_BLOCK_WORDS = 4
_ZEROS = memoryview(bytes(4 * CHUNK))


@dataclass(frozen=True)
class Mask:
    """A key and the sign with which its mask goes into a vector.

    Args:
        key: 32 secret bytes, used for this one mask.
        sign: +1 or -1.
    """

    key: bytes = field(repr=False)
    sign: int

    def __post_init__(self) -> None:
        check_bytes("key", self.key, 32)
        if self.sign not in (1, -1):
            raise ValueError(f"sign={self.sign}: need 1 or -1")

    def negated(self) -> Mask:
        """The mask that takes this one away."""
        return Mask(self.key, -self.sign)


def keystream(key: bytes, word: int) -> CipherContext:
    """AES-256-CTR from a word on (a multiple of 4), the counter's first block being zero."""
    if word % _BLOCK_WORDS:
        raise ValueError(f"word={word}: a cipher block is {_BLOCK_WORDS} words")
    return Cipher(algorithms.AES(key), modes.CTR((word // _BLOCK_WORDS).to_bytes(16, "big"))).encryptor()


def masked_pieces(
    values: UInt32[np.ndarray, " d"], masks: Sequence[Mask], start: int, stop: int
) -> Iterator[tuple[slice, UInt32[np.ndarray, " _"]]]:
    """The range of `values` with at least one mask added modulo 2^32, piece by piece.

    The array in each pair is the caller's to change, until the next one is asked for. `start` is a multiple of CHUNK.
    """
    if not masks:
        raise ValueError("masks=[]: need at least one")
    streams = [(keystream(mask.key, start), np.add if mask.sign > 0 else np.subtract) for mask in masks]
    size = min(CHUNK, stop - start)
    words, noise = np.empty(size, np.uint32), np.empty(size, "<u4")
    noise_bytes = noise.view(np.uint8).data
    for piece in pieces(start, stop):
        length = piece.stop - piece.start
        current, result, mask_words = values[piece], words[:length], noise[:length]
        zeros, mask_bytes = _ZEROS[: 4 * length], noise_bytes[: 4 * length]
        for stream, combine in streams:
            stream.update_into(zeros, mask_bytes)
            combine(current, mask_words, out=result)
            current = result
        yield piece, result
