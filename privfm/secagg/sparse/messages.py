"""The messages that a sparse graph adds to, or has in place of, those of the complete one."""

from __future__ import annotations

from dataclasses import dataclass

from privfm.secagg.encoding import Reader, Writer
from privfm.secagg.framing import COHORT_LIMIT, MESSAGE_LIMIT, Message, Signed, SignedBody, read_signed_blob
from privfm.secagg.messages import Agreement, Delivery
from privfm.secagg.sparse.merkle import PROOF_LIMIT

__all__ = ["Anchor", "Choice", "Evidence", "Leaf", "Masking", "Neighbourhood", "SparseDeliveries"]


@dataclass(frozen=True)
class Anchor(Message):
    """The coordinator's single-round key, the root over all key packages, and the proof of the reader's own."""

    TYPE = 11
    coordinator_key: bytes
    root: bytes
    proof: tuple[bytes, ...]

    def write(self, out: Writer) -> None:
        out.raw(self.coordinator_key).raw(self.root).sequence(self.proof, Writer.raw)

    @classmethod
    def read(cls, reader: Reader) -> Anchor:
        return cls(reader.raw(32), reader.raw(32), _read_proof(reader))


@dataclass(frozen=True)
class Choice(SignedBody):
    """choose: the neighbours that a hospital drew, ascending. Signed in context1."""

    TYPE = 12
    STAGE = "choose"
    sender: str
    neighbours: tuple[str, ...]

    def write(self, out: Writer) -> None:
        out.name(self.sender).sequence(self.neighbours, Writer.name)

    @classmethod
    def read(cls, reader: Reader) -> Choice:
        return cls(reader.name(), reader.sequence(COHORT_LIMIT, Reader.name))


@dataclass(frozen=True)
class Leaf:
    """One hospital's key package as it was sent, or nothing if it is absent, with its proof."""

    name: str
    package: bytes
    proof: tuple[bytes, ...]

    def write(self, out: Writer) -> None:
        out.name(self.name).blob(self.package).sequence(self.proof, Writer.raw)

    @classmethod
    def read(cls, reader: Reader) -> Leaf:
        return cls(reader.name(), reader.blob(MESSAGE_LIMIT), _read_proof(reader))


@dataclass(frozen=True)
class Neighbourhood(Message):
    """Everybody that the reader drew, and everybody that drew the reader, ascending."""

    TYPE = 13
    leaves: tuple[Leaf, ...]

    def write(self, out: Writer) -> None:
        out.sequence(self.leaves, lambda writer, leaf: leaf.write(writer))

    @classmethod
    def read(cls, reader: Reader) -> Neighbourhood:
        return cls(reader.sequence(COHORT_LIMIT, Leaf.read))


@dataclass(frozen=True)
class SparseDeliveries(Message):
    """What others dealt to the reader, ascending by dealer, and which of those that it drew dealt, ascending."""

    TYPE = 14
    items: tuple[Delivery, ...]
    sharers: tuple[str, ...]

    def write(self, out: Writer) -> None:
        out.sequence(self.items, lambda writer, item: item.write(writer)).sequence(self.sharers, Writer.name)

    @classmethod
    def read(cls, reader: Reader) -> SparseDeliveries:
        return cls(reader.sequence(COHORT_LIMIT, Delivery.read), reader.sequence(COHORT_LIMIT, Reader.name))


@dataclass(frozen=True)
class Masking(SignedBody):
    """mask: with whom the sender's upload is masked, ascending. Signed in context1; a blob before the upload."""

    TYPE = 15
    STAGE = "mask"
    sender: str
    peers: tuple[str, ...]

    def write(self, out: Writer) -> None:
        out.name(self.sender).sequence(self.peers, Writer.name)

    @classmethod
    def read(cls, reader: Reader) -> Masking:
        return cls(reader.name(), reader.sequence(COHORT_LIMIT, Reader.name))


@dataclass(frozen=True)
class Evidence(Message):
    """Who of the holders of the reader's shares agreed, and with whom each surviving dealer to it is masked.

    Both ascending by sender.
    """

    TYPE = 16
    agreements: tuple[Signed[Agreement], ...]
    maskings: tuple[Signed[Masking], ...]

    def write(self, out: Writer) -> None:
        out.sequence(self.agreements, lambda writer, item: writer.blob(item.encode()))
        out.sequence(self.maskings, lambda writer, item: writer.blob(item.encode()))

    @classmethod
    def read(cls, reader: Reader) -> Evidence:
        return cls(
            reader.sequence(COHORT_LIMIT, lambda rest: read_signed_blob(rest, Agreement)),
            reader.sequence(COHORT_LIMIT, lambda rest: read_signed_blob(rest, Masking)),
        )


def _read_proof(reader: Reader) -> tuple[bytes, ...]:
    return reader.sequence(PROOF_LIMIT, lambda rest: rest.raw(32))
