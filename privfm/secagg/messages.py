"""The messages of a round, each with exactly one encoding.

    key package   hospital -> coordinator   advertise
    cohort        coordinator -> hospital
    deal          hospital -> coordinator   share
    deliveries    coordinator -> hospital
    (upload       hospital -> coordinator   mask, see `upload`)
    survivors     coordinator -> hospital
    agreement     hospital -> coordinator   agree
    agreements    coordinator -> hospital
    reveal        hospital -> coordinator   unmask

Every encoding starts with the protocol's version and the message's type. What a hospital signs is the encoding of a
body in a context; the coordinator signs nothing, since nothing of a hospital's safety may rest on its word.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from privfm.secagg.encoding import MessageError, Reader, Writer, digest
from privfm.secagg.framing import COHORT_LIMIT, Message, Signed, SignedBody, read_signed_blob
from privfm.secagg.shamir import SHARE_BYTES, check_share
from privfm.secagg.spec import COUNTER_LIMIT, LedgerMark

__all__ = [
    "Agreement",
    "Agreements",
    "Cohort",
    "Commitments",
    "Deal",
    "Dealing",
    "Deliveries",
    "Delivery",
    "KeyPackage",
    "Opening",
    "Reveal",
    "Seed",
    "Share",
    "Survivors",
]

SALT_BYTES = 32
BOX_LIMIT = 256


class Seed(IntEnum):
    """The two secrets of a hospital that its peers hold shares of, only one of which may ever be opened."""

    SELF_MASK = 1
    MASK_KEY = 2


@dataclass(frozen=True)
class Share:
    """A share (33 bytes) and the salt (32 bytes) that hides it in its commitment."""

    value: bytes
    salt: bytes

    def commitment(self, context1: bytes, dealer: str, holder: str, seed: Seed) -> bytes:
        """32 bytes that the dealer signs, and by which the coordinator knows the share again."""
        names = Writer().name(dealer).name(holder).u8(seed)
        return digest("share", context1, bytes(names), self.salt, self.value)

    def write(self, out: Writer) -> None:
        out.raw(self.value).raw(self.salt)

    @classmethod
    def read(cls, reader: Reader) -> Share:
        value = reader.raw(SHARE_BYTES)
        check_share(value)
        return cls(value, reader.raw(SALT_BYTES))


@dataclass(frozen=True)
class KeyPackage(SignedBody):
    """advertise: a hospital's single-round X25519 keys (32 bytes each), and where its ledger stands.

    Signed in context0.
    """

    TYPE = 1
    STAGE = "advertise"
    sender: str
    channel_key: bytes
    mask_key: bytes
    mark: LedgerMark

    def write(self, out: Writer) -> None:
        out.name(self.sender).raw(self.channel_key).raw(self.mask_key).u64(self.mark.counter).raw(self.mark.head)

    @classmethod
    def read(cls, reader: Reader) -> KeyPackage:
        sender, channel_key, mask_key = reader.name(), reader.raw(32), reader.raw(32)
        counter, head = reader.u64(), reader.raw(32)
        if counter >= COUNTER_LIMIT:
            raise MessageError(f"ledger counter {counter} is out of range")
        return cls(sender, channel_key, mask_key, LedgerMark(counter, head))


@dataclass(frozen=True)
class Cohort(Message):
    """The coordinator's single-round X25519 key, and the key packages as they were sent, ascending by sender."""

    TYPE = 2
    coordinator_key: bytes
    packages: tuple[Signed[KeyPackage], ...]

    def write(self, out: Writer) -> None:
        out.raw(self.coordinator_key)
        out.sequence(self.packages, lambda writer, package: writer.blob(package.encode()))

    @classmethod
    def read(cls, reader: Reader) -> Cohort:
        return cls(reader.raw(32), reader.sequence(COHORT_LIMIT, lambda rest: read_signed_blob(rest, KeyPackage)))


@dataclass(frozen=True)
class Commitments:
    """What a dealer commits to for one holder: 32 bytes each for the two shares and for the box they travel in."""

    holder: str
    self_share: bytes
    key_share: bytes
    box: bytes

    def write(self, out: Writer) -> None:
        out.name(self.holder).raw(self.self_share).raw(self.key_share).raw(self.box)

    @classmethod
    def read(cls, reader: Reader) -> Commitments:
        return cls(reader.name(), reader.raw(32), reader.raw(32), reader.raw(32))

    def of(self, seed: Seed) -> bytes:
        """The commitment to the share of that seed."""
        return self.self_share if seed is Seed.SELF_MASK else self.key_share


@dataclass(frozen=True)
class Dealing(SignedBody):
    """share: the commitment to the self-mask seed, and those for each holder, ascending. Signed in context1.

    The mask-key seed needs no commitment of its own: it makes the advertised mask key or it does not.
    """

    TYPE = 4
    STAGE = "share"
    sender: str
    self_seed: bytes
    holders: tuple[Commitments, ...]

    def write(self, out: Writer) -> None:
        out.name(self.sender).raw(self.self_seed)
        out.sequence(self.holders, lambda writer, entry: entry.write(writer))

    @classmethod
    def read(cls, reader: Reader) -> Dealing:
        return cls(reader.name(), reader.raw(32), reader.sequence(COHORT_LIMIT, Commitments.read))

    def to(self, holder: str) -> Commitments:
        """The commitments for one holder.

        Raises:
            MessageError: nothing was dealt to it.
        """
        if holder not in self._by_holder:
            raise MessageError(f"{self.sender} did not deal to {holder}")
        return self._by_holder[holder]

    @cached_property
    def _by_holder(self) -> dict[str, Commitments]:
        return {entry.holder: entry for entry in self.holders}


@dataclass(frozen=True)
class Deal(Message):
    """A signed dealing, and a box for each of its holders in the same order. The dealer's own box is empty."""

    TYPE = 3
    dealing: Signed[Dealing]
    boxes: tuple[bytes, ...]

    def write(self, out: Writer) -> None:
        out.blob(self.dealing.encode()).sequence(self.boxes, lambda writer, box: writer.blob(box))

    @classmethod
    def read(cls, reader: Reader) -> Deal:
        return cls(read_signed_blob(reader, Dealing), reader.sequence(COHORT_LIMIT, lambda rest: rest.blob(BOX_LIMIT)))


@dataclass(frozen=True)
class Delivery:
    """One dealer's signed dealing and the box for the hospital that receives it."""

    dealing: Signed[Dealing]
    box: bytes

    def write(self, out: Writer) -> None:
        out.blob(self.dealing.encode()).blob(self.box)

    @classmethod
    def read(cls, reader: Reader) -> Delivery:
        return cls(read_signed_blob(reader, Dealing), reader.blob(BOX_LIMIT))


@dataclass(frozen=True)
class Deliveries(Message):
    """What the other dealers sent to one hospital, ascending by dealer."""

    TYPE = 5
    items: tuple[Delivery, ...]

    def write(self, out: Writer) -> None:
        out.sequence(self.items, lambda writer, item: item.write(writer))

    @classmethod
    def read(cls, reader: Reader) -> Deliveries:
        return cls(reader.sequence(COHORT_LIMIT, Delivery.read))


@dataclass(frozen=True)
class Survivors(Message):
    """Whose vectors are in the sum, ascending."""

    TYPE = 7
    names: tuple[str, ...]

    def write(self, out: Writer) -> None:
        out.sequence(self.names, lambda writer, name: writer.name(name))

    @classmethod
    def read(cls, reader: Reader) -> Survivors:
        return cls(reader.sequence(COHORT_LIMIT, Reader.name))


@dataclass(frozen=True)
class Agreement(SignedBody):
    """agree: "I know of this survivor set and of no other". Signed in context2, which is over that set."""

    TYPE = 8
    STAGE = "agree"
    sender: str

    def write(self, out: Writer) -> None:
        out.name(self.sender)

    @classmethod
    def read(cls, reader: Reader) -> Agreement:
        return cls(reader.name())


@dataclass(frozen=True)
class Agreements(Message):
    """The agreements that the coordinator collected, ascending by sender."""

    TYPE = 9
    items: tuple[Signed[Agreement], ...]

    def write(self, out: Writer) -> None:
        out.sequence(self.items, lambda writer, item: writer.blob(item.encode()))

    @classmethod
    def read(cls, reader: Reader) -> Agreements:
        return cls(reader.sequence(COHORT_LIMIT, lambda rest: read_signed_blob(rest, Agreement)))


@dataclass(frozen=True)
class Opening:
    """One share that a hospital hands out: of the dealer's self-mask seed or of its mask-key seed."""

    dealer: str
    seed: Seed
    share: Share

    def write(self, out: Writer) -> None:
        out.name(self.dealer).u8(self.seed)
        self.share.write(out)

    @classmethod
    def read(cls, reader: Reader) -> Opening:
        dealer, kind = reader.name(), reader.u8()
        if kind not in (Seed.SELF_MASK, Seed.MASK_KEY):
            raise MessageError(f"unknown kind of seed {kind}")
        return cls(dealer, Seed(kind), Share.read(reader))


@dataclass(frozen=True)
class Reveal(SignedBody):
    """unmask: one share for each dealer, ascending by dealer. Signed in context2."""

    TYPE = 10
    STAGE = "unmask"
    sender: str
    openings: tuple[Opening, ...]

    def write(self, out: Writer) -> None:
        out.name(self.sender).sequence(self.openings, lambda writer, opening: opening.write(writer))

    @classmethod
    def read(cls, reader: Reader) -> Reveal:
        return cls(reader.name(), reader.sequence(COHORT_LIMIT, Opening.read))
