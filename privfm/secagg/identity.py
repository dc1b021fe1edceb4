"""A hospital's long-term Ed25519 key: made once, kept in a file, pinned by the others in their roster."""

from __future__ import annotations

import base64
import binascii
import hashlib
import textwrap

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from privfm.errors import InputError, ProtocolError
from privfm.secagg.encoding import MessageError, Reader, Writer, check_bytes, check_name, digest, signed_bytes

__all__ = ["IDENTITY_LIMIT", "KEY_BYTES", "SALT_BYTES", "SIGNATURE_BYTES", "Identity", "fingerprint", "verify"]

KEY_BYTES = 32
SIGNATURE_BYTES = 64
SALT_BYTES = 16
IDENTITY_LIMIT = 4096
"""Most bytes of an identity file."""

_BEGIN, _END = "-----BEGIN PRIVFM IDENTITY-----", "-----END PRIVFM IDENTITY-----"
_VERSION, _CLEAR, _SCRYPT = 1, 0, 1
_SCRYPT_LOG2_N = 17  # 128 MiB and about half a second for each guess at a passphrase
_SCRYPT_MEMORY = 2**28


class Identity:
    """A hospital's name and signing key. Its repr shows the public half only.

    >>> alice = Identity.generate("alice", bytes(32))
    >>> verify(alice.public, "demo", bytes(32), b"body", alice.sign("demo", bytes(32), b"body"))
    """

    def __init__(self, name: str, seed: bytes) -> None:
        check_name(name)
        check_bytes("seed", seed, KEY_BYTES)
        self.name = name
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, public={self.public.hex()})"

    @classmethod
    def generate(cls, name: str, entropy: bytes) -> Identity:
        """A new identity out of 32 bytes of the operating system's entropy."""
        return cls(name, entropy)

    def sign(self, stage: str, context: bytes, body: bytes) -> bytes:
        """A 64-byte signature over one stage's message body in one 32-byte context."""
        return self._key.sign(signed_bytes(stage, context, body))

    def to_pem(self, passphrase: bytes | None, salt: bytes) -> bytes:
        """The identity as a text file.

        Guarantees: with a passphrase the key is sealed by ChaCha20-Poly1305 under scrypt (N = 2^17, r = 8, p = 1),
        and the name is sealed with it. Without one it lies open: keep such a file readable by its owner alone.

        Args:
            passphrase: None, or at least one byte.
            salt: 16 fresh random bytes, which also make the sealing key single-use.
        """
        check_bytes("salt", salt, SALT_BYTES)
        if passphrase == b"":
            raise ValueError("passphrase=b'': give at least one byte, or None for a file without one")
        head = Writer().u8(_VERSION).name(self.name)
        if passphrase is None:
            body = bytes(head.u8(_CLEAR).raw(self._seed))
        else:
            aad = bytes(head.u8(_SCRYPT).u8(_SCRYPT_LOG2_N).raw(salt))
            body = aad + _sealing_key(passphrase, salt, _SCRYPT_LOG2_N).encrypt(bytes(12), self._seed, aad)
        lines = textwrap.wrap(base64.b64encode(body).decode("ascii"), 64)
        return "\n".join([_BEGIN, *lines, _END, ""]).encode("ascii")

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes | None) -> Identity:
        """The identity in a text file that `to_pem` made.

        Raises:
            InputError: not such a file, or the passphrase is missing or wrong.
        """
        try:
            return cls._from_body(_armoured(pem), passphrase)
        except (MessageError, binascii.Error, UnicodeDecodeError) as error:
            raise InputError("identity file is damaged or of another kind: restore it, or make a new key") from error

    @staticmethod
    def is_sealed(pem: bytes) -> bool:
        """Whether `from_pem` needs a passphrase; False also for what is no identity file."""
        try:
            reader = Reader(_armoured(pem))
            return reader.u8() == _VERSION and bool(reader.name()) and reader.u8() == _SCRYPT
        except (MessageError, binascii.Error, UnicodeDecodeError):
            return False

    @staticmethod
    def is_file(data: bytes) -> bool:
        """Whether `data` claims to be an identity file."""
        return data.lstrip().startswith(_BEGIN.encode("ascii"))

    @classmethod
    def _from_body(cls, body: bytes, passphrase: bytes | None) -> Identity:
        reader = Reader(body)
        if reader.u8() != _VERSION:
            raise MessageError("unknown version")
        name, sealing = reader.name(), reader.u8()
        if sealing == _CLEAR:
            seed = reader.raw(KEY_BYTES)
        elif sealing == _SCRYPT:
            log2_n, salt = reader.u8(), reader.raw(SALT_BYTES)
            seed = _unseal(body[:-48], reader.raw(48), passphrase, salt, log2_n)
        else:
            raise MessageError("unknown sealing")
        reader.end()
        return cls(name, seed)


def _armoured(pem: bytes) -> bytes:
    if len(pem) > IDENTITY_LIMIT:
        raise MessageError(f"longer than {IDENTITY_LIMIT} bytes")
    lines = pem.decode("ascii").split()
    text = " ".join(lines)
    if not (text.startswith(_BEGIN) and text.endswith(_END)):
        raise MessageError("no armour")
    return base64.b64decode(text.removeprefix(_BEGIN).removesuffix(_END).replace(" ", ""), validate=True)


def _sealing_key(passphrase: bytes, salt: bytes, log2_n: int) -> ChaCha20Poly1305:
    key = hashlib.scrypt(passphrase, salt=salt, n=2**log2_n, r=8, p=1, maxmem=_SCRYPT_MEMORY, dklen=32)
    return ChaCha20Poly1305(key)


def _unseal(aad: bytes, box: bytes, passphrase: bytes | None, salt: bytes, log2_n: int) -> bytes:
    if not passphrase:
        raise InputError("identity file is sealed: give its passphrase")
    if log2_n != _SCRYPT_LOG2_N:
        raise MessageError("unknown cost")
    try:
        return _sealing_key(passphrase, salt, log2_n).decrypt(bytes(12), box, aad)
    except InvalidTag as error:
        raise InputError("identity file does not open: the passphrase is wrong, or the file is damaged") from error


def verify(public: bytes, stage: str, context: bytes, body: bytes, signature: bytes) -> None:
    """Check a signature that `Identity.sign` made.

    Raises:
        ProtocolError: it does not verify.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed_bytes(stage, context, body))
    except InvalidSignature as error:
        raise ProtocolError(f"signature over the {stage} message does not verify") from error


def fingerprint(value: bytes) -> str:
    """Eight groups of five digits (132 bits) that two people can compare by telephone.

    >>> fingerprint(bytes(32))
    '57264 06339 06760 70903 65057 31308 51523 17340'
    """
    number = int.from_bytes(digest("fingerprint", value), "big") % 10**40
    digits = f"{number:040d}"
    return " ".join(digits[at : at + 5] for at in range(0, 40, 5))
