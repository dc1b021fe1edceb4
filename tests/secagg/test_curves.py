"""Public keys: one spelling, no small order."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from rounds import entropy, identity

from privfm.secagg.curves import _SMALL_ORDER_U, _SMALL_ORDER_Y, check_ed25519, check_x25519
from privfm.secagg.encoding import MessageError
from privfm.secagg.exchange import exchange, public_key

P = 2**255 - 19


def little(number: int) -> bytes:
    return number.to_bytes(32, "little")


@pytest.mark.parametrize("u", sorted(_SMALL_ORDER_U))
def test_every_listed_x25519_key_gives_the_zero_secret(u: int) -> None:
    with pytest.raises(ValueError, match="shared key"):
        X25519PrivateKey.from_private_bytes(entropy("any")).exchange(X25519PublicKey.from_public_bytes(little(u)))
    with pytest.raises(MessageError, match="small order"):
        check_x25519(little(u))
    with pytest.raises(MessageError, match="small order"):
        exchange(entropy("any"), little(u))


def test_no_small_order_x25519_key_is_missing() -> None:
    """The curve's 8 points of order dividing 8 and the twist's 4 of order dividing 4 lie at 5 values of u."""
    assert all(order_divides_eight(u) for u in _SMALL_ORDER_U)
    assert not any(order_divides_eight(u) for u in range(2, 3000))
    assert len(_SMALL_ORDER_U) == 5


def order_divides_eight(u: int) -> bool:
    """Whether doubling three times, by the formula in x and z alone, ends at infinity."""
    x, z = u, 1
    for _ in range(3):
        x, z = (x * x - z * z) ** 2 % P, 4 * x * z * (x * x + 486662 * x * z + z * z) % P
    return z == 0


def test_second_spellings_of_an_x25519_key_give_one_secret_and_are_refused() -> None:
    """Why the check is there: the library takes them all."""
    key = X25519PrivateKey.from_private_bytes(entropy("any"))
    high_bit = little(int.from_bytes(public_key(entropy("peer")), "little") | 2**255)
    secrets = {key.exchange(X25519PublicKey.from_public_bytes(k)) for k in (public_key(entropy("peer")), high_bit)}
    assert len(secrets) == 1
    small = {key.exchange(X25519PublicKey.from_public_bytes(little(u))) for u in (9, 9 + P)}
    assert len(small) == 1
    for twin in (high_bit, little(9 + P), little(P), little(2**255 - 1)):
        with pytest.raises(MessageError, match="canonical"):
            check_x25519(twin)
    check_x25519(little(9))
    check_x25519(public_key(entropy("peer")))


@pytest.mark.parametrize("y", sorted(_SMALL_ORDER_Y))
@pytest.mark.parametrize("sign", [0, 1])
def test_small_order_ed25519_keys_are_refused(y: int, sign: int) -> None:
    with pytest.raises(MessageError, match="small order"):
        check_ed25519(little(y | sign << 255))


def test_anybody_can_sign_under_a_small_order_key() -> None:
    """Why the check is there: R = identity, s = 0 verifies every message under the neutral element."""
    Ed25519PublicKey.from_public_bytes(little(1)).verify(little(1) + bytes(32), b"any message")


def test_ed25519_keys_have_one_spelling() -> None:
    check_ed25519(identity("h00").public)
    for twin in (little(P + 3), little(2**255 - 1), little(P + 3 | 1 << 255)):
        with pytest.raises(MessageError, match="canonical"):
            check_ed25519(twin)


@pytest.mark.parametrize("check", [check_x25519, check_ed25519])
@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_are_32_bytes(check: object, length: int) -> None:
    assert callable(check)
    with pytest.raises(MessageError, match="not 32"):
        check(bytes(length))
