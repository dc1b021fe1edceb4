"""Who takes part: names and identity keys, in versions that each hospital holds and two people can compare aloud."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from privfm.errors import InputError, VerificationError
from privfm.secagg.curves import check_ed25519
from privfm.secagg.documents import parse_document, unhex, write_document
from privfm.secagg.encoding import MessageError, Writer, check_bytes, check_name, digest
from privfm.secagg.identity import fingerprint

__all__ = ["COORDINATOR", "ROSTER_LIMIT", "Member", "Roster", "check_successor", "roster_diff"]

COORDINATOR = "coordinator"
ROSTER_LIMIT = 2**24
"""Most bytes of a roster's file: 10,000 members and as many revoked keys take a tenth of it."""

_FORMAT = "privfm roster 1"
_FIELDS = {"federation": str, "version": int, "previous": str, "members": dict, "revoked": list}


@dataclass(frozen=True)
class Member:
    """A hospital and its Ed25519 public key.

    Args:
        name: not "coordinator".
        key: 32 bytes.
    """

    name: str
    key: bytes

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.name == COORDINATOR:
            raise ValueError(f"name={self.name!r}: reserved for the party that adds up")
        try:
            check_ed25519(self.key)
        except MessageError as error:
            raise ValueError(f"key of {self.name!r}: {error}") from error

    @property
    def fingerprint(self) -> str:
        """Of the key, to be compared by telephone."""
        return fingerprint(self.key)


@dataclass(frozen=True)
class Roster:
    """One version of the list of members.

    Rules that hold for every roster: names ascend and differ, keys differ, and no member's key was ever revoked.

    Args:
        federation: the name of the undertaking.
        version: 1 for the first.
        members: ascending by name.
        revoked: keys that may never be a member's again, ascending.
        previous: digest of the version before, 32 zero bytes for the first.

    >>> from privfm.secagg.identity import Identity
    >>> roster = Roster.first("demo", {"a": Identity.generate("a", bytes(32)).public})
    >>> Roster.from_json(roster.to_json()) == roster
    True
    """

    federation: str
    version: int
    members: tuple[Member, ...]
    revoked: tuple[bytes, ...] = ()
    previous: bytes = bytes(32)

    def __post_init__(self) -> None:
        check_name(self.federation)
        check_bytes("previous", self.previous, 32)
        for key in self.revoked:
            check_bytes("revoked key", key, 32)
        keys = [member.key for member in self.members]
        if not 1 <= self.version < 2**32 or (self.version == 1) != (self.previous == bytes(32)):
            raise ValueError(f"version={self.version}: the first is 1, and only the first follows no other")
        if not _ascends(self.names) or not self.names:
            raise ValueError(f"members={self.names}: need at least one, each name once, in ascending order")
        if not _ascends(self.revoked) or len(set(keys)) != len(keys):
            raise ValueError("members, revoked: need each key once")
        for member in self.members:
            if member.key in self.revoked:
                raise ValueError(f"members: the key of {member.name!r} was revoked")

    @classmethod
    def first(cls, federation: str, keys: dict[str, bytes]) -> Roster:
        """Version 1."""
        return cls(federation, 1, _members(keys))

    def successor(self, keys: dict[str, bytes], revoked: Iterable[bytes] = ()) -> Roster:
        """The next version: who is not in `keys` leaves; keys that left are revoked, and so are those in `revoked`."""
        gone = {member.key for member in self.members} - set(keys.values())
        never = tuple(sorted(gone.union(self.revoked, revoked)))
        return Roster(self.federation, self.version + 1, _members(keys), never, self.digest)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def keys(self) -> dict[str, bytes]:
        """Each member's key by name."""
        return dict(self._keys)

    def key_of(self, name: str) -> bytes:
        """The member's 32-byte key.

        Raises:
            KeyError: nobody has that name.
        """
        return self._keys[name]

    @cached_property
    def _keys(self) -> dict[str, bytes]:
        return {member.name: member.key for member in self.members}

    @cached_property
    def digest(self) -> bytes:
        """32 bytes over every field."""
        body = Writer().name(self.federation).u32(self.version).raw(self.previous)
        body.sequence(self.members, lambda out, member: out.name(member.name).raw(member.key))
        body.sequence(self.revoked, lambda out, key: out.raw(key))
        return digest("roster", bytes(body))

    @property
    def fingerprint(self) -> str:
        """Of the whole roster: when two hospitals read out the same one, they hold the same list."""
        return fingerprint(self.digest)

    def to_json(self) -> bytes:
        """The roster as a file."""
        fields = {
            "federation": self.federation,
            "version": self.version,
            "previous": self.previous.hex(),
            "members": {member.name: member.key.hex() for member in self.members},
            "revoked": [key.hex() for key in self.revoked],
        }
        return write_document(_FORMAT, fields)

    @classmethod
    def from_json(cls, data: bytes) -> Roster:
        """The roster in a file that `to_json` made.

        Raises:
            InputError: in one line, what is wrong with the file.
        """
        try:
            return cls._from_fields(parse_document(data, _FORMAT, _FIELDS, ROSTER_LIMIT))
        except ValueError as error:
            raise InputError(f"roster file is not sound: {error}") from error

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Roster:
        return cls(
            fields["federation"],
            fields["version"],
            _members({name: unhex(key, 32) for name, key in fields["members"].items()}),
            tuple(unhex(key, 32) for key in fields["revoked"]),
            unhex(fields["previous"], 32),
        )


def check_successor(old: Roster, new: Roster) -> None:
    """Refuse a roster that may not replace the one held.

    Raises:
        VerificationError: another federation, not the next version, not made from this one, a key that left is not
            revoked, or one that stayed goes by another name.
    """
    if new.federation != old.federation:
        raise VerificationError(f"roster is of {new.federation!r}, not {old.federation!r}")
    if new.version != old.version + 1 or new.previous != old.digest:
        raise VerificationError(f"roster version {new.version} does not follow version {old.version}: {_gap(old, new)}")
    gone = set(old.keys.values()) - set(new.keys.values())
    if not gone.union(old.revoked) <= set(new.revoked):
        raise VerificationError(f"roster version {new.version} drops a key without revoking it")
    before = {member.key: member.name for member in old.members}
    for member in new.members:
        if before.get(member.key, member.name) != member.name:
            raise VerificationError(
                f"roster version {new.version} gives the key of {before[member.key]} to {member.name}; "
                "a key belongs to one name for life"
            )


def _gap(old: Roster, new: Roster) -> str:
    if new.version > old.version + 1:
        return "ask for the ones between"
    if new.version <= old.version:
        return "it is no newer than the one held"
    return "it was made from another one than the one held; compare fingerprints by telephone"


def roster_diff(old: Roster, new: Roster) -> tuple[str, ...]:
    """What changes for a reader, a line for each name whose key changes and each key revoked."""
    lines = [f"version: {old.version} -> {new.version}"] if old.version != new.version else []
    if old.federation != new.federation:
        lines.append(f"federation: {old.federation} -> {new.federation}")
    for name in sorted({*old.names, *new.names}):
        before, after = old.keys.get(name), new.keys.get(name)
        if before != after:
            lines.append(f"{name}: {_shown(before)} -> {_shown(after)}")
    lines.extend(f"revoked: {fingerprint(key)}" for key in new.revoked if key not in old.revoked)
    lines.extend(f"no longer revoked: {fingerprint(key)}" for key in old.revoked if key not in new.revoked)
    return tuple(lines)


def _shown(key: bytes | None) -> str:
    return "not a member" if key is None else fingerprint(key)


def _members(keys: dict[str, bytes]) -> tuple[Member, ...]:
    return tuple(Member(name, keys[name]) for name in sorted(keys))


def _ascends(items: tuple[Any, ...]) -> bool:
    return all(left < right for left, right in pairwise(items))
