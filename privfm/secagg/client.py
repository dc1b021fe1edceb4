"""A hospital's part in a round: five pure steps `(state, incoming bytes) -> (state, outgoing bytes)`.

Each state is the only thing that the next step accepts, so a wrong order is a type error. Two answers from one state
could open a hospital's vector; `driver.Client` sees to it that there is never a second. A hospital that stops after
any step has dropped out, and its states are not to be stored.

Rules, in the order in which they are checked:

* The round is newer than any that this hospital advertised for, and the threshold protects it under its own policy.
* The cohort is a set of invited members of its own roster, itself included with the very keys it sent; each package
  is signed for this round, all keys are canonical and no two are alike; no peer's ledger went back.
* Shares come from at least a threshold of that cohort, each signed, meant for this hospital and as committed to.
* The survivors are among those sharers, itself included, no fewer than the threshold or its own minimum.
* At least a threshold of the survivors signed for the same survivors. Only then it opens one share for each sharer:
  of the self-mask seed of those who survived, of the mask-key seed of those who did not, never both.

Whatever an honest coordinator would have refused to relay is blamed on the coordinator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32

from privfm.errors import ProtocolError
from privfm.secagg import keys
from privfm.secagg.curves import check_x25519
from privfm.secagg.dealing import Dealer, Held, check_delivery, open_delivery
from privfm.secagg.encoding import check_bytes
from privfm.secagg.exchange import derive, exchange, exchanges, public_key
from privfm.secagg.identity import Identity
from privfm.secagg.masks import Mask
from privfm.secagg.messages import (
    Agreement,
    Agreements,
    Cohort,
    Dealing,
    Deliveries,
    Delivery,
    KeyPackage,
    Opening,
    Reveal,
    Seed,
    Signed,
    Survivors,
)
from privfm.secagg.roster import COORDINATOR
from privfm.secagg.spec import ClientPolicy, LedgerMark, RoundSpec
from privfm.secagg.stages import blaming, check_ascending
from privfm.secagg.upload import masked_upload

__all__ = [
    "Advertised",
    "Agreed",
    "Finished",
    "Masked",
    "Ready",
    "Shared",
    "advertise",
    "agree",
    "mask",
    "share",
    "unmask",
]


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
class Advertised:
    """After advertise: waits for the cohort."""

    own: Ready
    package: Signed[KeyPackage]
    entropy: bytes = field(repr=False)
    channel_seed: bytes = field(repr=False)
    mask_seed: bytes = field(repr=False)


@dataclass(frozen=True)
class Shared:
    """After share: waits for the others' shares."""

    own: Ready
    context1: bytes
    coordinator_key: bytes
    packages: Mapping[str, KeyPackage]
    dealing: Signed[Dealing]
    held: Held = field(repr=False)
    channel_seed: bytes = field(repr=False)
    mask_seed: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)

    @property
    def marks(self) -> dict[str, LedgerMark]:
        """Where each ledger of the cohort stands, signed: keep the highest."""
        return {name: package.mark for name, package in self.packages.items()}


@dataclass(frozen=True)
class Masked:
    """After mask: waits for the survivors. The seeds are gone."""

    own: Ready
    context1: bytes
    dealings: Mapping[str, Signed[Dealing]]
    held: Mapping[str, Held] = field(repr=False)


@dataclass(frozen=True)
class Agreed:
    """After agree: waits for the others' agreements."""

    own: Ready
    context2: bytes
    dealings: Mapping[str, Signed[Dealing]]
    survivors: tuple[str, ...]
    held: Mapping[str, Held] = field(repr=False)


@dataclass(frozen=True)
class Finished:
    """After unmask: nothing secret is left.

    Args:
        survivors: whose vectors are in the sum.
        transcript: 32 bytes, the same for every hospital that finished and for the coordinator.
    """

    survivors: tuple[str, ...]
    transcript: bytes


def advertise(
    state: Ready, mark: LedgerMark, *, answered: tuple[int, int] | None, entropy: bytes
) -> tuple[Advertised, bytes]:
    """Fresh keys for the round, signed.

    Args:
        mark: where this hospital's own ledger stands.
        answered: the highest `spec.number` of this run for which this was ever called, from the hospital's disk; store
            the new one before the message leaves.
        entropy: 32 bytes of the operating system's entropy for this call alone. Every secret of the round comes from
            it.

    Raises:
        ProtocolError: the round is not newer than `answered`, this hospital is not in it or under another key, or its
            threshold breaks the policy.
    """
    state.spec.check_graph(sparse=False)
    state.policy.check(state.spec.size, state.spec.threshold)
    advertised = new_keys(state, mark, answered, entropy)
    return advertised, advertised.package.encode()


def new_keys(state: Ready, mark: LedgerMark, answered: tuple[int, int] | None, entropy: bytes) -> Advertised:
    """A signed key package for a round that is this hospital's and newer than any before.

    Raises:
        ProtocolError: the round is neither.
    """
    check_bytes("entropy", entropy, 32)
    spec, identity = state.spec, state.identity
    if identity.name not in spec.cohort or spec.roster.key_of(identity.name) != identity.public:
        raise ProtocolError(f"{identity.name!r} with this key is not in the round", (COORDINATOR,))
    if answered is not None and spec.number <= answered:
        raise ProtocolError(f"round and attempt {spec.number} are not newer than {answered}", (COORDINATOR,))
    channel_seed = derive(entropy, spec.context0, "channel-key", identity.name)
    mask_seed = derive(entropy, spec.context0, "mask-key", identity.name)
    body = KeyPackage(identity.name, public_key(channel_seed), public_key(mask_seed), mark)
    return Advertised(state, Signed.by(identity, spec.context0, body), entropy, channel_seed, mask_seed)


def share(state: Advertised, incoming: bytes, *, seen: Mapping[str, LedgerMark]) -> tuple[Shared, bytes]:
    """Shares of both seeds, each pair sealed for its holder, with signed commitments to all of them.

    Args:
        incoming: the cohort.
        seen: the highest mark of each peer that this hospital ever saw; store the new ones, `Shared.marks`, after.

    Raises:
        ProtocolError: a rule about the cohort is broken.
    """
    with blaming(COORDINATOR, doing="cohort"):
        cohort = Cohort.decode(incoming)
        check_x25519(cohort.coordinator_key)
        packages = _check_packages(state, cohort)
    check_keys(packages)
    check_marks(packages, seen)
    state.own.policy.check(len(packages), state.own.spec.threshold)
    context1 = keys.cohort_context(state.own.spec.context0, cohort.packages)
    self_seed = derive(state.entropy, context1, "self-seed", state.own.name)
    dealer = Dealer(state.own.identity, context1, state.entropy, state.channel_seed, state.mask_seed, self_seed)
    held = dealer.split({name: point for point, name in enumerate(packages, start=1)}, state.own.spec.threshold)
    deal = dealer.deal(held, packages)
    shared = Shared(
        own=state.own,
        context1=context1,
        coordinator_key=cohort.coordinator_key,
        packages=packages,
        dealing=deal.dealing,
        held=held[state.own.name],
        channel_seed=state.channel_seed,
        mask_seed=state.mask_seed,
        self_seed=self_seed,
    )
    return shared, deal.encode()


def _check_packages(state: Advertised, cohort: Cohort) -> dict[str, KeyPackage]:
    spec, own = state.own.spec, state.own.name
    packages = {package.body.sender: package for package in cohort.packages}
    check_ascending([package.body.sender for package in cohort.packages])
    strangers = sorted(set(packages) - set(spec.cohort))
    if strangers:
        raise ProtocolError(f"{', '.join(strangers)} not invited to this round")
    if packages.get(own) != state.package:
        raise ProtocolError(f"the key package of {own} is not the one it sent")
    for name, package in packages.items():
        package.check(spec.roster.key_of(name), spec.context0)
    return {name: package.body for name, package in packages.items()}


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
    """Refuse a peer whose ledger went back or forked.

    Raises:
        ProtocolError: blaming the peer.
    """
    for name, package in packages.items():
        if name in seen and not package.mark.follows(seen[name]):
            raise ProtocolError(
                f"ledger of {name} went back: entry {package.mark.counter} after {seen[name].counter} was seen; "
                f"its hospital must recover the ledger before it goes on",
                (name,),
            )


def mask(
    state: Shared, incoming: bytes, vectors: Sequence[Int32[np.ndarray, " _"]], *, threads: int = 1
) -> tuple[Masked, memoryview]:
    """The vectors, hidden by this hospital's self-mask and by a mask with each peer that dealt.

    Args:
        incoming: the others' deliveries.
        vectors: what `quantise` returned, in the order of the round's specs.
        threads: changes the speed alone.

    Raises:
        ProtocolError: a rule about the sharers or their shares is broken.
        ValueError: a vector does not fit its spec.
    """
    spec, own = state.own.spec, state.own.name
    with blaming(COORDINATOR, doing="deliveries"):
        deliveries = Deliveries.decode(incoming).items
        check_ascending([delivery.dealing.body.sender for delivery in deliveries])
        for delivery in deliveries:
            _check_delivery(state, delivery)
        _check_enough(state.own, len(deliveries) + 1, "sharers")
    dealings = {delivery.dealing.body.sender: delivery.dealing for delivery in deliveries}
    secrets = exchanges(state.channel_seed, (state.packages[dealer].channel_key for dealer in dealings))
    held = {
        dealer: open_delivery(delivery, secret, state.context1, own)
        for dealer, delivery, secret in zip(dealings, deliveries, secrets, strict=True)
    }
    if len(vectors) != len(spec.vectors):
        raise ValueError(f"vectors={len(vectors)}: the round has {len(spec.vectors)}")
    shared = exchange(state.channel_seed, state.coordinator_key)
    upload = masked_upload(
        spec.vectors, vectors, _masks(state, tuple(dealings)), keys.tag_key(shared, state.context1, own), threads
    )
    masked = Masked(state.own, state.context1, {**dealings, own: state.dealing}, held={**held, own: state.held})
    return masked, upload


def _check_delivery(state: Shared, delivery: Delivery) -> None:
    """What an honest coordinator checked too."""
    dealing, own = delivery.dealing.body, state.own.name
    if dealing.sender not in state.packages or dealing.sender == own:
        raise ProtocolError(f"{dealing.sender} is no peer in this cohort")
    if tuple(entry.holder for entry in dealing.holders) != tuple(state.packages):
        raise ProtocolError(f"{dealing.sender} did not deal to this cohort")
    check_delivery(delivery, state.own.spec.roster.key_of(dealing.sender), state.context1, own)


def _masks(state: Shared, peers: Sequence[str]) -> list[list[Mask]]:
    """For each vector, every mask that goes into it."""
    spec, own = state.own.spec, state.own.name
    by_party = [keys.self_masks(state.self_seed, state.context1, own, spec.vectors)]
    secrets = exchanges(state.mask_seed, (state.packages[peer].mask_key for peer in peers))
    for peer, secret in zip(peers, secrets, strict=True):
        by_party.append(keys.pair_masks(secret, state.context1, own, peer, spec.vectors))
    return [list(masks) for masks in zip(*by_party, strict=True)]


def _check_enough(own: Ready, count: int, what: str) -> None:
    needed = max(own.spec.threshold, own.policy.min_cohort)
    if count < needed:
        raise ProtocolError(f"{count} {what}, this hospital answers for {needed} and more")


def agree(state: Masked, incoming: bytes, *, bound_to: Sequence[str] | None = None) -> tuple[Agreed, bytes]:
    """A signature under the survivor set.

    Args:
        incoming: the survivors.
        bound_to: when this hospital signed for survivors in an earlier attempt with these very vectors, those
            survivors: the sums over two different sets would give away the difference. It is enough that whoever
            signed remembers: with the same hospitals invited, of two sets that each found a threshold of signers an
            honest hospital signed both.

    Raises:
        ProtocolError: a rule about the survivors is broken.
    """
    own = state.own
    with blaming(COORDINATOR, doing="survivors"):
        survivors = Survivors.decode(incoming).names
        check_ascending(survivors)
        strangers = sorted(set(survivors) - set(state.dealings))
        if strangers:
            raise ProtocolError(f"{', '.join(strangers)} did not share, or did not share with {own.name}")
        if own.name not in survivors:
            raise ProtocolError(f"{own.name} is asked to agree that it dropped out")
        _check_enough(own, len(survivors), "survivors")
        if bound_to is not None and set(survivors) != set(bound_to):
            raise ProtocolError("these vectors were agreed on before, with other survivors")
    context2 = keys.survivors_context(state.context1, survivors)
    agreement = Signed.by(own.identity, context2, Agreement(own.name))
    return Agreed(own, context2, state.dealings, survivors, held=state.held), agreement.encode()


def unmask(state: Agreed, incoming: bytes) -> tuple[Finished, bytes]:
    """One share for each hospital that dealt: of its self-mask seed if it survived, else of its mask-key seed.

    Args:
        incoming: the others' agreements.

    Raises:
        ProtocolError: fewer than a threshold of the survivors signed for this survivor set.
    """
    spec, name = state.own.spec, state.own.name
    with blaming(COORDINATOR, doing="agreements"):
        agreements = Agreements.decode(incoming).items
        check_ascending([agreement.body.sender for agreement in agreements])
        for agreement in agreements:
            if agreement.body.sender not in state.survivors:
                raise ProtocolError(f"{agreement.body.sender} is no survivor")
            agreement.check(spec.roster.key_of(agreement.body.sender), state.context2)
        if len(agreements) < spec.threshold:
            raise ProtocolError(f"{len(agreements)} signed for these survivors, the threshold is {spec.threshold}")
    openings = tuple(_opening(state, dealer) for dealer in sorted(state.dealings))
    reveal = Signed.by(state.own.identity, state.context2, Reveal(name, openings))
    dealings = [state.dealings[dealer] for dealer in sorted(state.dealings)]
    transcript = keys.transcript_hash(state.context2, dealings, agreements)
    return Finished(state.survivors, transcript), reveal.encode()


def _opening(state: Agreed, dealer: str) -> Opening:
    seed = Seed.SELF_MASK if dealer in state.survivors else Seed.MASK_KEY
    return Opening(dealer, seed, state.held[dealer].of(seed))
