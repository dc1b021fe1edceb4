"""How a message is framed: protocol version, type, fields, and for what a hospital signs a signature behind them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

from privfm.secagg.encoding import MessageError, Reader, Writer
from privfm.secagg.identity import SIGNATURE_BYTES, Identity, verify
from privfm.secagg.spec import VERSION

__all__ = ["COHORT_LIMIT", "MESSAGE_LIMIT", "Body", "Message", "Signed", "SignedBody", "read_signed_blob"]

MESSAGE_LIMIT = 2**26  # bytes; a cohort of 100 needs 2 MB at most
COHORT_LIMIT = 2**16

M = TypeVar("M", bound="Message")


class Message(ABC):
    """A message with one encoding: version, type, fields."""

    TYPE: ClassVar[int]

    @abstractmethod
    def write(self, out: Writer) -> None:
        """Append the fields."""

    @classmethod
    @abstractmethod
    def read(cls: type[M], reader: Reader) -> M:
        """Take the fields."""

    def encode(self) -> bytes:
        """The one encoding."""
        out = Writer().u8(VERSION).u8(self.TYPE)
        self.write(out)
        return bytes(out)

    @classmethod
    def decode(cls: type[M], data: bytes) -> M:
        """The message that encodes to exactly these bytes.

        Raises:
            MessageError: there is none.
        """
        reader = _opened(data, cls.TYPE)
        message = cls.read(reader)
        reader.end()
        return message


class SignedBody(Message):
    """What a hospital signs, in the name of `sender`."""

    STAGE: ClassVar[str]
    sender: str


Body = TypeVar("Body", bound=SignedBody)


@dataclass(frozen=True)
class Signed(Generic[Body]):
    """A body and its sender's signature: the body's encoding, then 64 bytes."""

    body: Body
    signature: bytes

    @classmethod
    def by(cls, identity: Identity, context: bytes, body: Body) -> Signed[Body]:
        """The body, signed in a context."""
        return cls(body, identity.sign(body.STAGE, context, body.encode()))

    def check(self, key: bytes, context: bytes) -> None:
        """Check the signature over the bytes that were received.

        Raises:
            ProtocolError: it was not made by that key over this body in this context.
        """
        verify(key, self.body.STAGE, context, self._encoded[:-SIGNATURE_BYTES], self.signature)

    def encode(self) -> bytes:
        """The one encoding."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        """Kept, because a coordinator relays one message to many."""
        return self.body.encode() + self.signature

    @classmethod
    def decode(cls, kind: type[Body], data: bytes) -> Signed[Body]:
        """The signed message of a kind that encodes to exactly these bytes; its signature is not checked yet.

        Raises:
            MessageError: there is none.
        """
        reader = _opened(data, kind.TYPE)
        message = cls(kind.read(reader), reader.raw(SIGNATURE_BYTES))
        reader.end()
        message.__dict__["_encoded"] = data
        return message


def _opened(data: bytes, kind: int) -> Reader:
    if len(data) > MESSAGE_LIMIT:
        raise MessageError(f"message of {len(data)} bytes where at most {MESSAGE_LIMIT} fit")
    reader = Reader(data)
    version, found = reader.u8(), reader.u8()
    if version != VERSION:
        raise MessageError(f"protocol version {version}, not {VERSION}")
    if found != kind:
        raise MessageError(f"message type {found}, not {kind}")
    return reader


def read_signed_blob(reader: Reader, kind: type[Body]) -> Signed[Body]:
    """A length-prefixed signed message."""
    return Signed.decode(kind, reader.blob(MESSAGE_LIMIT))
