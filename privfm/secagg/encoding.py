"""Bytes that mean one thing: length-prefixed fields, read back exactly or not at all.

Integers are big-endian and unsigned. A `blob` is a u32 length and that many bytes; a `name` is a blob of UTF-8; a
sequence is a u32 count and its items. `digest` and `signed_bytes` are the only ways in which this package hashes and
signs, so two different lists of fields never share an input.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable
from typing import TypeVar

from privfm.errors import ProtocolError

__all__ = ["MessageError", "Reader", "Writer", "check_bytes", "check_name", "digest", "signed_bytes"]

DOMAIN = b"privfm/v1/"
NAME_LIMIT = 64

Item = TypeVar("Item")


class MessageError(ProtocolError):
    """Bytes that are not the message that they should be."""


def digest(label: str, *fields: bytes | memoryview) -> bytes:
    """The SHA-256 over a label and length-prefixed fields: 32 bytes, one input per list of fields.

    >>> digest("demo", b"ab", b"c") == digest("demo", b"a", b"bc")
    False
    """
    state = hashlib.sha256(DOMAIN + label.encode("ascii") + b"\0")
    for field in fields:
        state.update(len(field).to_bytes(8, "big"))
        state.update(field)
    return state.digest()


def signed_bytes(stage: str, context: bytes, body: bytes) -> bytes:
    """What an identity key signs: the stage, the 32-byte context it speaks about, and the message's own fields."""
    check_bytes("context", context, 32)
    return DOMAIN + stage.encode("ascii") + b"\0" + context + body


def check_bytes(field: str, value: bytes, length: int) -> None:
    """Refuse bytes of the wrong length, without showing them.

    Raises:
        ValueError: naming the field and both lengths.
    """
    if not isinstance(value, bytes) or len(value) != length:
        raise ValueError(f"{field}: need {length} bytes, not {len(value)}")


def check_name(name: str) -> None:
    """Refuse a name that two readers could take for different ones.

    Raises:
        ValueError: unless it is 1 to 64 bytes of printable UTF-8 in normal form C, without blanks around it.
    """
    if not name or name != name.strip() or not name.isprintable() or unicodedata.normalize("NFC", name) != name:
        raise ValueError(f"name={name!r}: use printable characters, with no blanks around them")
    if len(name.encode("utf-8", "surrogatepass")) > NAME_LIMIT:
        raise ValueError(f"name={name!r}: use at most {NAME_LIMIT} bytes")


class Writer:
    """Appends fields; `bytes(writer)` is the result.

    >>> bytes(Writer().u8(7).blob(b"ab")).hex()
    '07000000026162'
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def __bytes__(self) -> bytes:
        return b"".join(self._parts)

    def raw(self, value: bytes) -> Writer:
        """Bytes whose length both sides know."""
        self._parts.append(value)
        return self

    def u8(self, value: int) -> Writer:
        return self.raw(value.to_bytes(1, "big"))

    def u32(self, value: int) -> Writer:
        return self.raw(value.to_bytes(4, "big"))

    def u64(self, value: int) -> Writer:
        return self.raw(value.to_bytes(8, "big"))

    def blob(self, value: bytes) -> Writer:
        return self.u32(len(value)).raw(value)

    def name(self, value: str) -> Writer:
        return self.blob(value.encode("utf-8"))

    def sequence(self, items: Iterable[Item], write: Callable[[Writer, Item], object]) -> Writer:
        """A count, then each item as `write` puts it."""
        rows = list(items)
        self.u32(len(rows))
        for row in rows:
            write(self, row)
        return self


class Reader:
    """Takes fields off the front of a message; never allocates more than the message holds.

    >>> reader = Reader(bytes.fromhex("07000000026162"))
    >>> reader.u8(), reader.blob(limit=2), reader.end()
    (7, b'ab', None)
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def view(self, length: int) -> memoryview:
        """The next `length` bytes, not copied."""
        if length > len(self._data) - self._at:
            raise MessageError(f"message ends {length - (len(self._data) - self._at)} bytes early")
        self._at += length
        return self._data[self._at - length : self._at]

    def raw(self, length: int) -> bytes:
        return bytes(self.view(length))

    def u8(self) -> int:
        return self.view(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.view(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.view(8), "big")

    def blob(self, limit: int) -> bytes:
        """A length-prefixed field of at most `limit` bytes."""
        length = self.u32()
        if length > limit:
            raise MessageError(f"field of {length} bytes where at most {limit} fit")
        return self.raw(length)

    def name(self) -> str:
        """A name in its one valid spelling."""
        try:
            name = self.blob(NAME_LIMIT).decode("utf-8")
            check_name(name)
        except ValueError as error:
            raise MessageError("name is not printable UTF-8 in normal form C") from error
        return name

    def sequence(self, limit: int, read: Callable[[Reader], Item]) -> tuple[Item, ...]:
        """At most `limit` items, each as `read` takes it."""
        count = self.u32()
        if count > limit:
            raise MessageError(f"{count} items where at most {limit} fit")
        return tuple(read(self) for _ in range(count))

    def end(self) -> None:
        """Nothing may follow.

        Raises:
            MessageError: on trailing bytes.
        """
        if self._at != len(self._data):
            raise MessageError(f"{len(self._data) - self._at} bytes follow the end of the message")
