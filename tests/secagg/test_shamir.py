"""Shares of seeds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounds import entropy

from privfm.secagg.encoding import MessageError
from privfm.secagg.shamir import COEFFICIENT_BYTES, PRIME, check_share, recover, split

seeds = st.binary(min_size=32, max_size=32)


def coefficients(count: int) -> list[bytes]:
    return [(entropy("coefficient", index) * 2)[:COEFFICIENT_BYTES] for index in range(count)]


def is_probable_prime(number: int) -> bool:
    """Miller-Rabin with the first 40 primes as bases."""
    bases = [n for n in range(2, 174) if all(n % d for d in range(2, n))]
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        value = pow(base, odd, number)
        if value in (1, number - 1):
            continue
        if not any((value := value * value % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_field_is_the_first_prime_above_every_seed() -> None:
    assert PRIME == 2**256 + 297
    assert is_probable_prime(PRIME)
    assert not any(is_probable_prime(2**256 + offset) for offset in range(297))


@given(seed=seeds, threshold=st.integers(1, 6), extra=st.integers(0, 4), data=st.data())
def test_any_threshold_of_shares_recovers(seed: bytes, threshold: int, extra: int, data: st.DataObject) -> None:
    points = range(1, threshold + extra + 1)
    shares = dict(zip(points, split(seed, points, coefficients(threshold - 1)), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert recover({point: shares[point] for point in chosen}, threshold) == seed


@given(seed=seeds)
def test_shares_of_fewer_do_not_recover(seed: bytes) -> None:
    shares = split(seed, (1, 2, 3), coefficients(2))
    with pytest.raises(ValueError, match="threshold of 3"):
        recover({1: shares[0], 2: shares[1]}, 3)
    assert recover({1: shares[0], 2: shares[1]}, 2) != seed


def test_the_largest_seed_fits() -> None:
    shares = split(b"\xff" * 32, (1, 2), coefficients(1))
    assert recover(dict(enumerate(shares, start=1)), 2) == b"\xff" * 32


def test_a_secret_that_is_no_seed_is_none() -> None:
    shares = {1: PRIME - 1, 2: PRIME - 1}
    assert recover({point: value.to_bytes(33, "big") for point, value in shares.items()}, 2) is None


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), PRIME.to_bytes(33, "big"), b"\xff" * 33])
def test_a_share_has_one_spelling(share: bytes) -> None:
    with pytest.raises(MessageError):
        check_share(share)
    with pytest.raises(MessageError):
        recover({1: share, 2: bytes(33)}, 2)


def test_the_largest_share_is_canonical() -> None:
    assert check_share((PRIME - 1).to_bytes(33, "big")) == PRIME - 1


@pytest.mark.parametrize("points", [(1, 1, 2), (0, 1, 2), (1, 2, PRIME), (1,)])
def test_points_must_tell_shares_apart_and_hide_the_seed(points: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="points="):
        split(bytes(32), points, coefficients(1))
