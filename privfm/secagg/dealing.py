"""Dealing shares of seeds: split, salted, committed to, sealed for their holders; and opening what others dealt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from privfm.errors import ProtocolError
from privfm.secagg import keys
from privfm.secagg.encoding import MessageError, Reader, Writer, digest
from privfm.secagg.exchange import derive, exchanges, open_box, seal_box
from privfm.secagg.framing import Signed
from privfm.secagg.identity import Identity
from privfm.secagg.messages import Commitments, Deal, Dealing, Delivery, KeyPackage, Seed, Share
from privfm.secagg.shamir import COEFFICIENT_BYTES, split
from privfm.secagg.stages import blaming

__all__ = ["Dealer", "Held", "check_boxes", "check_delivery", "open_delivery"]


@dataclass(frozen=True)
class Held:
    """The two shares that a hospital holds for one dealer."""

    self_share: Share
    key_share: Share

    def of(self, seed: Seed) -> Share:
        """The share of that seed."""
        return self.self_share if seed is Seed.SELF_MASK else self.key_share

    def write(self, out: Writer) -> None:
        self.self_share.write(out)
        self.key_share.write(out)

    @classmethod
    def read(cls, reader: Reader) -> Held:
        return cls(Share.read(reader), Share.read(reader))

    def commitments(self, context1: bytes, dealer: str, holder: str, box: bytes) -> Commitments:
        """What the dealer signs for this holder."""
        self_share, key_share = (self.of(seed).commitment(context1, dealer, holder, seed) for seed in Seed)
        return Commitments(holder, self_share, key_share, digest("box", box))


@dataclass(frozen=True)
class Dealer:
    """A hospital about to deal, with everything that its shares come from.

    Args:
        context1: of the round.
        entropy: the hospital's 32 bytes; polynomials and salts are derived from them.
        channel_seed: its X25519 private key for boxes.
        mask_seed: shared, for the case that it drops out.
        self_seed: shared, for the case that it stays.
    """

    identity: Identity
    context1: bytes
    entropy: bytes = field(repr=False)
    channel_seed: bytes = field(repr=False)
    mask_seed: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)

    def split(self, points: Mapping[str, int], threshold: int) -> dict[str, Held]:
        """Both seeds, split among holders at their points (from 1): `threshold` shares recover a seed."""
        seeds = {Seed.SELF_MASK: self.self_seed, Seed.MASK_KEY: self.mask_seed}
        shares = {seed: self._split_seed(seed, value, points, threshold) for seed, value in seeds.items()}
        return {holder: Held(shares[Seed.SELF_MASK][holder], shares[Seed.MASK_KEY][holder]) for holder in points}

    def _split_seed(self, seed: Seed, value: bytes, points: Mapping[str, int], threshold: int) -> dict[str, Share]:
        coefficients = [
            derive(self.entropy, self.context1, f"{seed.name} coefficient", index, length=COEFFICIENT_BYTES)
            for index in range(threshold - 1)
        ]
        values = split(value, tuple(points.values()), coefficients)
        return {
            holder: Share(share, derive(self.entropy, self.context1, f"{seed.name} salt", holder))
            for holder, share in zip(points, values, strict=True)
        }

    def deal(self, held: Mapping[str, Held], packages: Mapping[str, KeyPackage]) -> Deal:
        """Both shares sealed for each holder, and one signature over all commitments."""
        secrets = exchanges(self.channel_seed, (packages[holder].channel_key for holder in held))
        boxes = {
            holder: self._box(holder, secret, shares)
            for (holder, shares), secret in zip(held.items(), secrets, strict=True)
        }
        name = self.identity.name
        body = Dealing(
            name,
            keys.seed_commitment(self.context1, name, self.self_seed),
            tuple(shares.commitments(self.context1, name, holder, boxes[holder]) for holder, shares in held.items()),
        )
        return Deal(Signed.by(self.identity, self.context1, body), tuple(boxes.values()))

    def _box(self, holder: str, secret: bytes, held: Held) -> bytes:
        """Nothing for the dealer itself, which keeps its own shares."""
        name = self.identity.name
        if holder == name:
            return b""
        out = Writer()
        held.write(out)
        return seal_box(keys.channel_key(secret, self.context1, name, holder), bytes(out))


def check_boxes(deal: Deal) -> None:
    """Refuse a deal whose boxes are not the ones that its dealing commits to.

    Raises:
        ProtocolError: they are not.
    """
    if [digest("box", box) for box in deal.boxes] != [entry.box for entry in deal.dealing.body.holders]:
        raise ProtocolError("boxes are not the ones signed")


def check_delivery(delivery: Delivery, key: bytes, context1: bytes, holder: str) -> None:
    """Refuse what an honest coordinator does not relay: a dealing not signed for this round, or a box not in it.

    Raises:
        ProtocolError: saying which.
    """
    delivery.dealing.check(key, context1)
    dealer = delivery.dealing.body.sender
    if digest("box", delivery.box) != delivery.dealing.body.to(holder).box:
        raise ProtocolError(f"the box from {dealer} is not the one it signed for {holder}")


def open_delivery(delivery: Delivery, secret: bytes, context1: bytes, holder: str) -> Held:
    """The shares in a checked delivery. The dealer signed for box and shares, so a box that is not sound is its doing.

    Args:
        secret: what the channel keys of dealer and holder agree on.

    Raises:
        ProtocolError: blaming the dealer.
    """
    dealer = delivery.dealing.body.sender
    with blaming(dealer, doing=f"shares dealt by {dealer}"):
        reader = Reader(open_box(keys.channel_key(secret, context1, dealer, holder), delivery.box))
        held = Held.read(reader)
        reader.end()
        if held.commitments(context1, dealer, holder, delivery.box) != delivery.dealing.body.to(holder):
            raise MessageError("share is not the one committed to")
    return held
