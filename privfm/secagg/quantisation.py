"""Real numbers to ring integers and back.

An entry is clamped to [-clip, clip], scaled to a fixed-point number of levels, and rounded at random to one of the two
levels beside it, so that the expected level is the fixed-point number itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from privfm.secagg.chunks import CHUNK, pieces, spread
from privfm.secagg.encoding import check_bytes
from privfm.secagg.masks import keystream
from privfm.secagg.spec import VectorSpec

__all__ = ["dequantise", "quantise"]

COIN_BITS = 8
_WORD_BYTES = 4
_ZEROS = memoryview(bytes(CHUNK))


@dataclass(frozen=True)
class FixedPoint:
    """How an entry becomes a whole number of levels / 2^bits, in single precision.

    `bound` and `factor` are rounded towards zero, so that no clamped entry exceeds levels * 2^bits < 2^31.
    """

    bound: np.float32
    factor: np.float32
    bits: int

    @classmethod
    def of(cls, spec: VectorSpec) -> FixedPoint:
        bits = min(COIN_BITS, 31 - spec.levels.bit_length())
        most = spec.levels << bits
        bound = _float32_towards_zero(spec.clip)
        factor = _float32_towards_zero(most / float(bound))
        while float(bound * factor) > most:
            factor = np.nextafter(factor, np.float32(0))
        return cls(bound, factor, bits)


def _float32_towards_zero(value: float) -> np.float32:
    rounded = np.float32(value)
    return np.nextafter(rounded, np.float32(0)) if float(rounded) > value else rounded


def quantise(
    values: Float32[np.ndarray, " d"],
    spec: VectorSpec,
    entropy: bytes,
    *,
    threads: int = 1,
    out: Int32[np.ndarray, " d"] | None = None,
) -> Int32[np.ndarray, " d"]:
    """Each value's level: floor(fixed point + u), u uniform in [0, 1) by steps of 2^-bits.

    Guarantees: every level is in [-levels, levels]. The result depends on `entropy`, not on `threads`. The bits are 8,
    or as many as leave levels * 2^bits below 2^31; a value's distance to the fixed point is at most 2^-9 levels, and
    in a ring of 24 bits or more what single precision loses is as much.

    Args:
        values: spec.length entries.
        entropy: 32 secret bytes, used for this one vector: the coins are AES-256-CTR under them.
        threads: changes the speed alone.
        out: where to write the levels; `values.view(np.int32)` overwrites the values and takes no memory.

    Raises:
        ValueError: a value is not a number, or there are not spec.length of them.

    >>> quantise(np.array([-9.0, 0.5, 0.0], np.float32), VectorSpec("v", 3, 1.0, levels=4), bytes(32))
    array([-4,  2,  0], dtype=int32)
    """
    check_bytes("entropy", entropy, 32)
    if values.shape != (spec.length,):
        raise ValueError(f"values.shape={values.shape}: {spec.name!r} has {spec.length} entries")
    result = np.empty(spec.length, np.int32) if out is None else out
    fixed = FixedPoint.of(spec)

    def work(start: int, stop: int) -> None:
        stream, size = keystream(entropy, start // _WORD_BYTES), min(CHUNK, stop - start)
        scaled, coins, fractions = np.empty(size, np.float32), np.empty(size, np.uint8), np.empty(size, np.int32)
        for piece in pieces(start, stop):
            length = piece.stop - piece.start
            x, coin, fraction, level = scaled[:length], coins[:length], fractions[:length], result[piece]
            np.clip(values[piece], -fixed.bound, fixed.bound, out=x)
            if np.isnan(np.maximum.reduce(x)):
                raise ValueError(f"vector {spec.name!r} holds a value that is not a number")
            np.rint(np.multiply(x, fixed.factor, out=x), out=x)
            np.copyto(level, x, casting="unsafe")
            stream.update_into(_ZEROS[:length], coin.data)
            if fixed.bits < COIN_BITS:
                np.right_shift(coin, COIN_BITS - fixed.bits, out=coin)
            np.copyto(fraction, coin)
            np.add(level, fraction, out=level)
            np.right_shift(level, fixed.bits, out=level)

    spread(spec.length, threads, work)
    return result


def dequantise(total: Int32[np.ndarray, " d"], spec: VectorSpec) -> Float32[np.ndarray, " d"]:
    """The sum of the clamped values that a sum of levels stands for.

    >>> dequantise(np.array([-4, 2, 0], np.int32), VectorSpec("v", 3, 1.0, levels=4))
    array([-1. ,  0.5,  0. ], dtype=float32)
    """
    result = np.empty(total.shape, np.float32)
    for piece in pieces(0, len(total)):
        np.multiply(total[piece], spec.step, out=result[piece], dtype=np.float64, casting="unsafe")
    return result
