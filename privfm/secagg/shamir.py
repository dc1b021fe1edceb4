"""Threshold sharing of 32-byte seeds: any `threshold` shares give the seed, fewer say nothing about it.

A seed is a number below 2^256, so it fits the prime field 2^256 + 297 (the first prime above 2^256) whole and needs
no splitting. A share is the value at x of a polynomial of degree threshold - 1 whose constant term is the seed,
written as 33 bytes; x is public and never 0.

Source: Shamir 1979, "How to share a secret".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from privfm.secagg.encoding import MessageError, check_bytes

__all__ = ["COEFFICIENT_BYTES", "PRIME", "SEED_BYTES", "SHARE_BYTES", "check_share", "recover", "split"]

PRIME = 2**256 + 297
SEED_BYTES = 32
SHARE_BYTES = 33
# Reducing 384 uniform bits modulo a 257-bit prime is within 2^-128 of uniform.
COEFFICIENT_BYTES = 48


def split(seed: bytes, points: Sequence[int], coefficients: Sequence[bytes]) -> tuple[bytes, ...]:
    """The shares of a seed at each point, any `1 + len(coefficients)` of which recover it.

    Guarantees: when the coefficients are secret and uniform, `len(coefficients)` shares are independent of the seed.

    Args:
        seed: 32 bytes.
        points: distinct and at least 1.
        coefficients: threshold - 1 strings of 48 uniform bytes, used for nothing else.

    >>> shares = split(bytes(31) + b"A", (1, 2, 3), (bytes(47) + b"B",))
    >>> recover({1: shares[0], 3: shares[2]}, threshold=2) == bytes(31) + b"A"
    True
    """
    check_bytes("seed", seed, SEED_BYTES)
    if len(set(points)) != len(points) or not all(0 < point < PRIME for point in points):
        raise ValueError(f"points={points}: need distinct numbers from 1")
    if len(points) <= len(coefficients):
        raise ValueError(f"points={points}: fewer than the threshold {len(coefficients) + 1}")
    for coefficient in coefficients:
        check_bytes("coefficient", coefficient, COEFFICIENT_BYTES)
    polynomial = [int.from_bytes(value, "big") % PRIME for value in (seed, *coefficients)]
    return tuple(evaluate(polynomial, point, PRIME).to_bytes(SHARE_BYTES, "big") for point in points)


def recover(shares: Mapping[int, bytes], threshold: int) -> bytes | None:
    """The seed on the polynomial of degree threshold - 1 through the first `threshold` shares by point.

    None when that polynomial's constant term is no 32-byte string: then the shares were not dealt by `split`.

    Raises:
        MessageError: a share is not canonical.
        ValueError: there are fewer than `threshold` shares.
    """
    if len(shares) < threshold:
        raise ValueError(f"shares={len(shares)}: need the threshold of {threshold}")
    points = sorted(shares)[:threshold]
    values = [check_share(shares[point]) for point in points]
    weights = weights_at_zero(tuple(points), PRIME)
    secret = sum(weight * value for weight, value in zip(weights, values, strict=True)) % PRIME
    return secret.to_bytes(SEED_BYTES, "big") if secret < 2**256 else None


def check_share(share: bytes) -> int:
    """The field element that 33 canonical bytes stand for.

    Raises:
        MessageError: wrong length, or not reduced modulo the prime.
    """
    if len(share) != SHARE_BYTES:
        raise MessageError(f"share of {len(share)} bytes, not {SHARE_BYTES}")
    value = int.from_bytes(share, "big")
    if value >= PRIME:
        raise MessageError("share is not reduced modulo the prime")
    return value


def evaluate(polynomial: Sequence[int], point: int, prime: int) -> int:
    """The polynomial's value (coefficients from the constant up), by Horner's rule."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % prime
    return value


@lru_cache(maxsize=4)
def weights_at_zero(points: tuple[int, ...], prime: int) -> tuple[int, ...]:
    """Lagrange's weights: the values at `points`, so weighted, add up to the value at 0.

    Kept between calls, because a coordinator recovers every seed of a round from the same points.
    """
    return tuple(_weight_at_zero(point, points, prime) for point in points)


def _weight_at_zero(point: int, points: tuple[int, ...], prime: int) -> int:
    numerator = denominator = 1
    for other in points:
        if other != point:
            numerator = numerator * other % prime
            denominator = denominator * (other - point) % prime
    return numerator * pow(denominator, -1, prime) % prime
