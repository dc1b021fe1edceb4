"""Which 32 bytes may be somebody's public key.

A key must have one spelling, or a coordinator could pass one hospital's key off as two (for X25519 u, u + p and the
high bit give one secret), and no small order, or secrets and signatures would not depend on the private half.

Source: Bernstein 2006, "Curve25519"; Bernstein et al. 2011, "High-speed high-security signatures"; RFC 7748, RFC 8032.
"""

from __future__ import annotations

from privfm.secagg.encoding import MessageError

__all__ = ["check_ed25519", "check_x25519"]

_P = 2**255 - 19
# y of the points of order 8 on edwards25519, up to sign; order 1, 2 and 4 have y = 1, -1 and 0.
_Y8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})
# The same points on curve25519: u = (1 + y) / (1 - y). The twist's points of order 4 have u = 0, 1 and -1 too.
_U8 = 0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0
_V8 = 0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F
_SMALL_ORDER_U = frozenset({0, 1, _P - 1, _U8, _V8})


def check_x25519(key: bytes) -> None:
    """Refuse an X25519 public key with a second spelling or a predictable secret.

    Raises:
        MessageError: not 32 bytes, not below p, or of small order.
    """
    _check(key, int.from_bytes(key, "little"), _SMALL_ORDER_U)


def check_ed25519(key: bytes) -> None:
    """Refuse an Ed25519 public key with a second spelling, or one under which anybody can sign.

    Raises:
        MessageError: not 32 bytes, y not below p, or of small order.
    """
    _check(key, int.from_bytes(key, "little") & (2**255 - 1), _SMALL_ORDER_Y)


def _check(key: bytes, coordinate: int, small_order: frozenset[int]) -> None:
    if len(key) != 32:
        raise MessageError(f"public key of {len(key)} bytes, not 32")
    if coordinate >= _P:
        raise MessageError("public key is not in its one canonical spelling")
    if coordinate in small_order:
        raise MessageError("public key has small order")
