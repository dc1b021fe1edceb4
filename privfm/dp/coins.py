"""A hospital's secret randomness: AES-256-CTR streams, keyed by the operating system or, in tests, by an injected seed.

Poisson draws and noise that someone could replay would void the guarantee (DESIGN: "secret coins"), so a run's
public `seed` never reaches this file.
"""

from __future__ import annotations

import hashlib
import os
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from jaxtyping import Float, UInt64

__all__ = ["Coins", "InjectedCoins", "Stream", "SystemCoins"]

CHUNK_PAIRS = 1 << 17
_ZEROS = memoryview(bytes(8 * CHUNK_PAIRS))
_EXPONENT_OF_ONE = np.uint64(0x3FF0000000000000)


class Stream:
    """A stream of uniform bytes: AES-256 in counter mode under a single-use key.

    Args:
        key: 32 bytes, never used for another stream.

    Example:
        >>> Stream(bytes(32)).read(4).hex()
        'dc95c078'
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(f"key has {len(key)} bytes; 32 are needed")
        self._encrypt = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def __repr__(self) -> str:
        return "Stream(<secret>)"

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        return self._encrypt.update(bytes(count))

    def words(self, count: int) -> UInt64[np.ndarray, " count"]:
        """Return the next `count` words, uniform over 64 bits."""
        words = np.empty(count, dtype="<u8")
        target = words.view(np.uint8).data
        for start in range(0, len(target), len(_ZEROS)):
            piece = target[start : start + len(_ZEROS)]
            self._encrypt.update_into(_ZEROS[: len(piece)], piece)
        return words.astype(np.uint64, copy=False)

    def uniform(self, count: int) -> Float[np.ndarray, " count"]:
        """Return `count` float64 values, uniform over the multiples of 2**-52 in [0, 1)."""
        words = self.words(count)
        np.right_shift(words, np.uint64(12), out=words)
        np.bitwise_or(words, _EXPONENT_OF_ONE, out=words)
        values = words.view(np.float64)  # in [1, 2): the fastest way from bits to numbers
        return np.subtract(values, 1.0, out=values)

    def normal(self, count: int, terms: int = 1) -> Float[np.ndarray, " count"]:
        """Return `count` independent standard normal float64 values.

        Args:
            terms: of how many standard normals each value is the scaled sum. With several, no single draw's
                floating-point grid shows through a value (Holohan & Braghin 2021, section 3); it takes that many times
                as long.

        Source: Box & Muller 1958, with 52-bit uniforms, so that the tail reaches 8.4 standard deviations. torch
        computes the functions, many at a time and on its threads.
        """
        if terms < 1:
            raise ValueError(f"terms={terms}: need at least 1")
        total = self._normal(count)
        for _ in range(terms - 1):
            total += self._normal(count)
        return total if terms == 1 else np.divide(total, np.sqrt(terms), out=total)

    def _normal(self, count: int) -> Float[np.ndarray, " count"]:
        out = torch.empty(count + count % 2, dtype=torch.float64)
        for pairs in torch.split(out, 2 * CHUNK_PAIRS):
            size = len(pairs) // 2
            radius = torch.from_numpy(self.uniform(size)).neg_().log1p_().mul_(-2.0).sqrt_()
            angle = torch.from_numpy(self.uniform(size)).mul_(2.0 * np.pi)
            torch.mul(radius, angle.cos(), out=pairs[:size])
            torch.mul(radius, angle.sin_(), out=pairs[size:])
        return out.numpy()[:count]

    def generator(self) -> np.random.Generator:
        """Return a numpy generator keyed by the stream, for choices that carry no guarantee (crops, masks)."""
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self.read(16), "little")))


@runtime_checkable
class Coins(Protocol):
    """Where a hospital's streams come from."""

    @property
    def private(self) -> bool:
        """Whether nobody can replay them."""
        ...

    def stream(self, *label: str | int) -> Stream:
        """Return the stream for `label`; a label is used once."""
        ...


class SystemCoins:
    """Streams keyed by fresh entropy of the operating system; two streams of one label differ."""

    private = True

    def stream(self, *label: str | int) -> Stream:
        return Stream(os.urandom(32))


class InjectedCoins:
    """Streams derived from a seed, for tests: anyone who knows the seed can replay them, so a run is not private."""

    private = False

    def __init__(self, seed: bytes) -> None:
        self._seed = hashlib.blake2b(seed, digest_size=32).digest()

    def stream(self, *label: str | int) -> Stream:
        return Stream(hashlib.blake2b(repr(label).encode(), key=self._seed, digest_size=32).digest())
