"""What a hospital hands to whoever makes the roster: its public key as a card, or word that a key is lost to it.

A card shows that its sender holds the private half, and a card after a rotation that the holder of the old key wanted
it. That the key is the hospital's shows nothing but the fingerprint, compared by telephone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from privfm.errors import InputError, ProtocolError, VerificationError
from privfm.secagg.documents import check_fields, document_format, parse_document, unhex, write_document
from privfm.secagg.encoding import Writer, check_bytes
from privfm.secagg.identity import KEY_BYTES, SIGNATURE_BYTES, Identity, fingerprint, verify
from privfm.secagg.roster import Member

__all__ = ["CARD_LIMIT", "Card", "Replaced", "Revocation", "parse_paper"]

CARD_LIMIT = 4096
_CARD, _REVOCATION = "privfm card 1", "privfm revocation 1"
_NO_ROUND = bytes(32)  # cards speak about no round; their stages are used in none


@dataclass(frozen=True)
class Replaced:
    """The key before, and its signature over the card that ends its use.

    Args:
        key: 32 bytes.
        signature: 64 bytes.
    """

    key: bytes
    signature: bytes = field(repr=False)


@dataclass(frozen=True)
class Card:
    """A hospital's name and public key, signed by that key, and by the one that it replaces.

    Guarantees: a card whose signatures do not verify cannot be made.

    Raises:
        ValueError: a name or key that no member may have.
        VerificationError: a signature does not verify.

    >>> old, new = (Identity.generate("north", bytes([i] * 32)) for i in (1, 2))
    >>> card = Card.of(new, replaces=old)
    >>> Card.from_json(card.to_json()) == card
    True
    """

    name: str
    key: bytes
    signature: bytes = field(repr=False)
    replaces: Replaced | None = None

    def __post_init__(self) -> None:
        Member(self.name, self.key)
        old = self.replaces
        body = _card_body(self.name, self.key, None if old is None else old.key)
        _check("card", self.name, self.key, body, self.signature)
        if old is not None:
            Member(self.name, old.key)
            if old.key == self.key:
                raise ValueError("the key replaces itself")
            _check("rotation", self.name, old.key, body, old.signature)

    @classmethod
    def of(cls, identity: Identity, replaces: Identity | None = None) -> Card:
        """The card of a key, signed by it and by the key that it replaces."""
        if replaces is not None and replaces.name != identity.name:
            raise ValueError(f"replaces={replaces.name!r}: need the same name, {identity.name!r}")
        body = _card_body(identity.name, identity.public, None if replaces is None else replaces.public)
        signature = identity.sign("card", _NO_ROUND, body)
        old = None if replaces is None else Replaced(replaces.public, replaces.sign("rotation", _NO_ROUND, body))
        return cls(identity.name, identity.public, signature, old)

    @property
    def fingerprint(self) -> str:
        """Of the key, to be compared by telephone."""
        return fingerprint(self.key)

    def to_json(self) -> bytes:
        """The card as a file."""
        old = self.replaces
        fields = {
            "name": self.name,
            "key": self.key.hex(),
            "replaces": {} if old is None else {"key": old.key.hex(), "signature": old.signature.hex()},
            "signature": self.signature.hex(),
        }
        return write_document(_CARD, fields)

    @classmethod
    def from_json(cls, data: bytes) -> Card:
        """The card in a file that `to_json` made.

        Raises:
            InputError: not such a file.
            VerificationError: a signature does not verify.
        """
        try:
            fields = parse_document(
                data, _CARD, {"name": str, "key": str, "replaces": dict, "signature": str}, CARD_LIMIT
            )
            key, signature = unhex(fields["key"], KEY_BYTES), unhex(fields["signature"], SIGNATURE_BYTES)
            return cls(fields["name"], key, signature, _replaced(fields["replaces"]))
        except ValueError as error:
            raise InputError(f"card is not sound: {error}") from error


@dataclass(frozen=True)
class Revocation:
    """Word from a key's holder that nobody may use the key any more, signed by that key.

    Guarantees: a revocation whose signature does not verify cannot be made.

    >>> revocation = Revocation.of(Identity.generate("north", bytes(32)))
    >>> Revocation.from_json(revocation.to_json()) == revocation
    True
    """

    name: str
    key: bytes
    signature: bytes = field(repr=False)

    def __post_init__(self) -> None:
        Member(self.name, self.key)
        _check("revocation", self.name, self.key, _body(self.name, self.key), self.signature)

    @classmethod
    def of(cls, identity: Identity) -> Revocation:
        """The revocation of a key."""
        body = _body(identity.name, identity.public)
        return cls(identity.name, identity.public, identity.sign("revocation", _NO_ROUND, body))

    @property
    def fingerprint(self) -> str:
        """Of the key."""
        return fingerprint(self.key)

    def to_json(self) -> bytes:
        """The revocation as a file."""
        fields = {"name": self.name, "key": self.key.hex(), "signature": self.signature.hex()}
        return write_document(_REVOCATION, fields)

    @classmethod
    def from_json(cls, data: bytes) -> Revocation:
        """The revocation in a file that `to_json` made.

        Raises:
            InputError: not such a file.
            VerificationError: its signature does not verify.
        """
        try:
            fields = parse_document(data, _REVOCATION, {"name": str, "key": str, "signature": str}, CARD_LIMIT)
            key, signature = unhex(fields["key"], KEY_BYTES), unhex(fields["signature"], SIGNATURE_BYTES)
            return cls(fields["name"], key, signature)
        except ValueError as error:
            raise InputError(f"revocation is not sound: {error}") from error


def parse_paper(data: bytes) -> Card | Revocation:
    """The card or the revocation in a file, whichever it is.

    Raises:
        InputError: neither.
        VerificationError: a signature does not verify.
    """
    try:
        revokes = document_format(data, CARD_LIMIT) == _REVOCATION
    except ValueError as error:
        raise InputError(f"neither a card nor a revocation: {error}") from error
    return Revocation.from_json(data) if revokes else Card.from_json(data)


def _replaced(fields: dict[str, object]) -> Replaced | None:
    if not fields:
        return None
    check_fields(fields, {"key": str, "signature": str})
    return Replaced(unhex(fields["key"], KEY_BYTES), unhex(fields["signature"], SIGNATURE_BYTES))


def _body(name: str, key: bytes) -> bytes:
    return bytes(Writer().name(name).raw(key))


def _card_body(name: str, key: bytes, old: bytes | None) -> bytes:
    return _body(name, key) + (b"\0" if old is None else b"\1" + old)


def _check(stage: str, name: str, key: bytes, body: bytes, signature: bytes) -> None:
    check_bytes("signature", signature, SIGNATURE_BYTES)
    try:
        verify(key, stage, _NO_ROUND, body, signature)
    except ProtocolError as error:
        raise VerificationError(
            f"the {stage} signature of {name!r} does not verify: the file was changed, or another key signed it; "
            "ask for it again"
        ) from error
