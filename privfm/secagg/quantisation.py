"""Real numbers to ring integers and back.

An entry is clamped to [-clip, clip] and rounded at random to one of its two neighbouring levels, so that the
expected level is the clamped value itself (to one part in 2^16 of a level).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int32

from privfm.secagg.chunks import CHUNK, pieces, spread
from privfm.secagg.encoding import check_bytes
from privfm.secagg.masks import keystream
from privfm.secagg.spec import VectorSpec

__all__ = ["dequantise", "quantise"]

_COIN_BITS = 16
_ZEROS = memoryview(bytes(2 * CHUNK))


def quantise(
    values: Float32[np.ndarray, " d"], spec: VectorSpec, entropy: bytes, *, threads: int = 1
) -> Int32[np.ndarray, " d"]:
    """Each value's level: floor(clamped * levels / clip + u), u uniform in [0, 1) by steps of 2^-16.

    Guarantees: every level is in [-levels, levels]. The result depends on `entropy`, not on `threads`.

    Args:
        values: spec.length entries.
        entropy: 32 secret bytes, used for this one vector: the coins are AES-256-CTR under them.

    Raises:
        ValueError: a value is not a number, or there are not spec.length of them.

    >>> quantise(np.array([-9.0, 0.5, 0.0], np.float32), VectorSpec("v", 3, 1.0, levels=4), bytes(32))
    array([-4,  2,  0], dtype=int32)
    """
    check_bytes("entropy", entropy, 32)
    if values.shape != (spec.length,):
        raise ValueError(f"values.shape={values.shape}: {spec.name!r} has {spec.length} entries")
    result = np.empty(spec.length, np.int32)
    spread(spec.length, threads, lambda start, stop: _quantise_range(values, spec, entropy, result, start, stop))
    return result


def _quantise_range(
    values: Float32[np.ndarray, " d"],
    spec: VectorSpec,
    entropy: bytes,
    result: Int32[np.ndarray, " d"],
    start: int,
    stop: int,
) -> None:
    stream = keystream(entropy, start // 2)
    bound, scale = _bound_and_scale(spec)
    clamped, coins = np.empty(CHUNK, np.float32), np.empty(CHUNK, "<u2")
    scaled, fractions = np.empty(CHUNK, np.float64), np.empty(CHUNK, np.float64)
    for piece in pieces(start, stop):
        length = piece.stop - piece.start
        x, coin, y, fraction = clamped[:length], coins[:length], scaled[:length], fractions[:length]
        np.clip(values[piece], -bound, bound, out=x)
        if np.isnan(np.maximum.reduce(x)):
            raise ValueError(f"vector {spec.name!r} holds a value that is not a number")
        stream.update_into(_ZEROS[: 2 * length], coin.view(np.uint8).data)
        np.copyto(fraction, coin)
        np.multiply(fraction, 2.0**-_COIN_BITS, out=fraction)
        np.copyto(y, x)
        np.multiply(y, scale, out=y)
        np.add(y, fraction, out=y)
        np.copyto(result[piece], np.floor(y, out=y), casting="unsafe")


def _bound_and_scale(spec: VectorSpec) -> tuple[np.float32, float]:
    """The float32 clamp and float64 factor, both rounded towards zero: no clamped value scales past `levels`."""
    bound = np.float32(spec.clip)
    if float(bound) > spec.clip:
        bound = np.nextafter(bound, np.float32(0))
    scale = spec.levels / spec.clip
    if float(bound) * scale > spec.levels:
        scale = float(np.nextafter(scale, 0.0))
    return bound, scale


def dequantise(total: Int32[np.ndarray, " d"], spec: VectorSpec) -> Float32[np.ndarray, " d"]:
    """The sum of the clamped values that a sum of levels stands for.

    >>> dequantise(np.array([-4, 2, 0], np.int32), VectorSpec("v", 3, 1.0, levels=4))
    array([-1. ,  0.5,  0. ], dtype=float32)
    """
    result = np.empty(total.shape, np.float32)
    for piece in pieces(0, len(total)):
        np.multiply(total[piece], spec.step, out=result[piece], dtype=np.float64, casting="unsafe")
    return result
