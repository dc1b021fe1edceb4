"""Public randomness by key: the same numbers for the same key whatever else is drawn, many keys at a time.

Not for secrets: the numbers are a fast hash of the key.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

__all__ = ["KeyedDraws", "join_keys"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def join_keys(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One key for each pair of keys; order matters.

    Example:
        >>> one, two = np.array([1], np.uint64), np.array([2], np.uint64)
        >>> bool(join_keys(one, two) == join_keys(two, one))
        False
    """
    with np.errstate(over="ignore"):
        return _mix(_mix(first + _GOLDEN) ^ (second * _GOLDEN + np.uint64(1)))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators")."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(eq=False)
class KeyedDraws:
    """A stream of numbers for each key; every call advances all streams alike.

    Args:
        keys: [n], one a stream.
    """

    keys: NDArray[np.uint64]
    _drawn: int = 0

    def uniform(self, low: float | int, high: float | int, *shape: int) -> Float32[np.ndarray, "n ..."]:
        """The next numbers in [low, high) of each stream; without a shape [n 1 1], ready to broadcast over pixels.

        Example:
            >>> keys = np.arange(3, dtype=np.uint64)
            >>> bool((KeyedDraws(keys).uniform(0.0, 1.0)[2] == KeyedDraws(keys[2:]).uniform(0.0, 1.0)[0]).all())
            True
        """
        count = int(np.prod(shape)) if shape else 1
        counters = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64)
        self._drawn += count
        with np.errstate(over="ignore"):
            bits = _mix(self.keys[:, None] + counters * _GOLDEN)
        unit = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        scaled: NDArray[np.float32] = np.float32(low) + np.float32(high - low) * unit
        return scaled.reshape(len(self.keys), *(shape or (1, 1)))
