"""What a hospital does in a round on either graph: its keys, its dealing, its upload, its signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from jaxtyping import Int32

from privfm.errors import ProtocolError, RolledBackError
from privfm.secagg import keys
from privfm.secagg.curves import check_x25519
from privfm.secagg.dealing import Dealer, Held, open_delivery
from privfm.secagg.encoding import check_bytes
from privfm.secagg.exchange import derive, exchange, exchanges, public_key
from privfm.secagg.framing import Signed
from privfm.secagg.identity import Identity
from privfm.secagg.masks import Mask
from privfm.secagg.messages import Agreement, Deal, Delivery, KeyPackage, Opening, Reveal, Seed
from privfm.secagg.roster import COORDINATOR
from privfm.secagg.spec import ClientPolicy, LedgerMark, RoundSpec
from privfm.secagg.stages import blaming, check_ascending
from privfm.secagg.upload import masked_upload

__all__ = [
    "Finished",
    "Ready",
    "RoundKeys",
    "Sharing",
    "check_agreements",
    "check_enough",
    "check_keys",
    "check_marks",
    "reveal",
    "sign_survivors",
]

Keys = TypeVar("Keys", bound="RoundKeys")


@dataclass(frozen=True)
class Ready:
    """Before the round: what a hospital brings along and keeps over it."""

    spec: RoundSpec
    identity: Identity
    policy: ClientPolicy

    @property
    def name(self) -> str:
        return self.identity.name


@dataclass(frozen=True)
class RoundKeys:
    """A hospital's secrets for one round, and the key package with their public halves."""

    own: Ready
    package: Signed[KeyPackage]
    entropy: bytes = field(repr=False)
    channel_seed: bytes = field(repr=False)
    mask_seed: bytes = field(repr=False)

    @classmethod
    def fresh(cls: type[Keys], own: Ready, mark: LedgerMark, answered: tuple[int, int] | None, entropy: bytes) -> Keys:
        """Keys for a round that is this hospital's and newer than any before, their package signed.

        Raises:
            ProtocolError: the round is neither.
        """
        check_bytes("entropy", entropy, 32)
        spec, identity = own.spec, own.identity
        if identity.name not in spec.cohort or spec.roster.key_of(identity.name) != identity.public:
            raise ProtocolError(f"{identity.name!r} with this key is not in the round", (COORDINATOR,))
        if answered is not None and spec.number <= answered:
            raise ProtocolError(f"round and attempt {spec.number} are not newer than {answered}", (COORDINATOR,))
        channel_seed = derive(entropy, spec.context0, "channel-key", identity.name)
        mask_seed = derive(entropy, spec.context0, "mask-key", identity.name)
        body = KeyPackage(identity.name, public_key(channel_seed), public_key(mask_seed), mark)
        return cls(own, Signed.by(identity, spec.context0, body), entropy, channel_seed, mask_seed)

    def self_seed(self, context1: bytes) -> bytes:
        """The seed of its self-mask, for this very cohort."""
        return derive(self.entropy, context1, "self-seed", self.own.name)

    def deal(
        self, context1: bytes, points: Mapping[str, int], threshold: int, packages: Mapping[str, KeyPackage]
    ) -> tuple[Deal, dict[str, Held]]:
        """Shares of both seeds for the holders at their points, sealed and committed to; and the same in clear."""
        dealer = Dealer(
            self.own.identity, context1, self.entropy, self.channel_seed, self.mask_seed, self.self_seed(context1)
        )
        held = dealer.split(points, threshold)
        return dealer.deal(held, packages), held


@dataclass(frozen=True)
class Sharing:
    """A hospital that dealt its shares, with what it masks by.

    Args:
        packages: of everybody that it may mask with.
    """

    own: Ready
    context1: bytes
    coordinator_key: bytes
    packages: Mapping[str, KeyPackage]
    channel_seed: bytes = field(repr=False)
    mask_seed: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)

    @property
    def marks(self) -> dict[str, LedgerMark]:
        """Where the ledgers behind these packages stand, signed: keep the highest."""
        return {name: package.mark for name, package in self.packages.items()}

    def open(self, deliveries: Sequence[Delivery]) -> dict[str, Held]:
        """By dealer, the shares in checked deliveries.

        Raises:
            ProtocolError: a box is not sound, which its dealer is blamed for.
        """
        dealers = [delivery.dealing.body.sender for delivery in deliveries]
        secrets = exchanges(self.channel_seed, (self.packages[dealer].channel_key for dealer in dealers))
        return {
            dealer: open_delivery(delivery, secret, self.context1, self.own.name)
            for dealer, delivery, secret in zip(dealers, deliveries, secrets, strict=True)
        }

    def upload(
        self, peers: Sequence[str], vectors: Sequence[Int32[np.ndarray, " _"]], threads: int, *, prefix: bytes = b""
    ) -> memoryview:
        """The vectors under this hospital's self-mask and a mask with each peer.

        Raises:
            ValueError: a vector does not fit its spec.
        """
        spec = self.own.spec
        if len(vectors) != len(spec.vectors):
            raise ValueError(f"vectors={len(vectors)}: the round has {len(spec.vectors)}")
        tag_key = keys.tag_key(exchange(self.channel_seed, self.coordinator_key), self.context1, self.own.name)
        return masked_upload(spec.vectors, vectors, self.masks(peers), tag_key, threads, prefix=prefix)

    def masks(self, peers: Sequence[str]) -> list[list[Mask]]:
        """For each vector, every mask that goes into it."""
        vectors, own = self.own.spec.vectors, self.own.name
        by_party = [keys.self_masks(self.self_seed, self.context1, own, vectors)]
        secrets = exchanges(self.mask_seed, (self.packages[peer].mask_key for peer in peers))
        for peer, secret in zip(peers, secrets, strict=True):
            by_party.append(keys.pair_masks(secret, self.context1, own, peer, vectors))
        return [list(masks) for masks in zip(*by_party, strict=True)]


@dataclass(frozen=True)
class Finished:
    """After unmask: nothing secret is left.

    Args:
        survivors: whose vectors are in the sum.
        transcript: 32 bytes, the same for every hospital that finished and for the coordinator.
    """

    survivors: tuple[str, ...]
    transcript: bytes


def check_keys(packages: Mapping[str, KeyPackage]) -> None:
    """Refuse keys that are not canonical, of small order or shown twice.

    Raises:
        ProtocolError: blaming their owners, who signed them.
    """
    for name, package in packages.items():
        with blaming(name, doing=f"key package of {name}"):
            check_x25519(package.channel_key)
            check_x25519(package.mask_key)
    for names in keys.key_clashes(packages):
        raise ProtocolError(f"{' and '.join(names)}: one key shown twice", names)


def check_marks(packages: Mapping[str, KeyPackage], seen: Mapping[str, LedgerMark]) -> None:
    """Refuse peers whose ledgers went back or forked.

    Raises:
        RolledBackError: blaming all of them; remember to refuse them until they have recovered.
    """
    back = {name: package.mark for name, package in packages.items() if not _follows(package.mark, seen.get(name))}
    if back:
        marks = ", ".join(f"{name} (entry {mark.counter} after {seen[name].counter})" for name, mark in back.items())
        raise RolledBackError(f"ledgers went back: {marks}; run privfm budget recover there", tuple(back))


def _follows(mark: LedgerMark, seen: LedgerMark | None) -> bool:
    return seen is None or mark.follows(seen)


def check_enough(count: int, needed: int, what: str) -> None:
    """Refuse to go on with too few.

    Raises:
        ProtocolError: saying of what.
    """
    if count < needed:
        raise ProtocolError(f"{count} {what}, need {needed}")


def sign_survivors(own: Ready, context1: bytes, survivors: Sequence[str]) -> tuple[bytes, bytes]:
    """context2, and the agreement to it."""
    context2 = keys.survivors_context(context1, survivors)
    return context2, Signed.by(own.identity, context2, Agreement(own.name)).encode()


def check_agreements(
    own: Ready, context2: bytes, agreements: Sequence[Signed[Agreement]], among: Sequence[str], needed: int
) -> None:
    """Refuse unless enough of those it must hear from signed for the survivors in context2.

    Raises:
        ProtocolError: somebody else's agreement, one that was not signed in this context, or too few.
    """
    check_ascending([agreement.body.sender for agreement in agreements])
    for agreement in agreements:
        if agreement.body.sender not in among:
            raise ProtocolError(f"{own.name} does not wait for the agreement of {agreement.body.sender}")
        agreement.check(own.spec.roster.key_of(agreement.body.sender), context2)
    check_enough(len(agreements), needed, "signed for these survivors")


def reveal(own: Ready, context2: bytes, held: Mapping[str, Held], survivors: Sequence[str]) -> bytes:
    """One share for each dealer: of its self-mask seed if it survived, else of its mask-key seed."""

    def opening(dealer: str) -> Opening:
        seed = Seed.SELF_MASK if dealer in survivors else Seed.MASK_KEY
        return Opening(dealer, seed, held[dealer].of(seed))

    body = Reveal(own.name, tuple(opening(dealer) for dealer in sorted(held)))
    return Signed.by(own.identity, context2, body).encode()
