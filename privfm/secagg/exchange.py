"""Secrets that two parties share after showing each other one X25519 key, and the keys that are drawn from them.

Every key comes from HKDF-SHA256 with the round's context as salt and what the key is for as info. So hospitals that
were shown different rounds, models or peers arrive at unrelated keys, and no two uses share one.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privfm.secagg.curves import check_x25519
from privfm.secagg.encoding import DOMAIN, MessageError, Writer, check_bytes

__all__ = ["derive", "exchange", "exchanges", "open_box", "public_key", "seal_box"]

_ZERO_NONCE = bytes(12)


def public_key(seed: bytes) -> bytes:
    """The X25519 public key of a 32-byte private one."""
    return X25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def exchange(seed: bytes, peer: bytes) -> bytes:
    """The 32-byte secret of a private key and somebody else's public one. Only ever input to `derive`.

    Raises:
        MessageError: the public key is not canonical or has small order.
    """
    return exchanges(seed, [peer])[0]


def exchanges(seed: bytes, peers: Iterable[bytes]) -> list[bytes]:
    """The secrets of one private key with each of many public ones; sooner done than one by one.

    Raises:
        MessageError: a public key is not canonical or has small order.
    """
    private, secrets = X25519PrivateKey.from_private_bytes(seed), []
    for peer in peers:
        check_x25519(peer)
        secrets.append(private.exchange(X25519PublicKey.from_public_bytes(peer)))
    return secrets


def derive(secret: bytes, context: bytes, label: str, *fields: str | int, length: int = 32) -> bytes:
    """A key for one use.

    Args:
        secret: uniform, or what `exchange` returned.
        context: 32 bytes, the salt.
        label: what the key is for.
        fields: names and numbers (u64) that tell this use from the others with that label.
        length: in bytes.
    """
    check_bytes("context", context, 32)
    info = Writer().raw(DOMAIN + label.encode("ascii") + b"\0")
    for item in fields:
        if isinstance(item, str):
            info.name(item)
        else:
            info.u64(item)
    return HKDF(algorithm=SHA256(), length=length, salt=context, info=bytes(info)).derive(secret)


def seal_box(key: bytes, text: bytes) -> bytes:
    """The text under ChaCha20-Poly1305 with a zero nonce: the key must be for this one text."""
    return ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, text, None)


def open_box(key: bytes, box: bytes) -> bytes:
    """The text in a box.

    Raises:
        MessageError: it was not sealed with this key.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, box, None)
    except InvalidTag as error:
        raise MessageError("box does not open") from error
