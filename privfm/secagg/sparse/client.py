"""A hospital's part in a round on a sparse graph: six pure steps `(state, incoming bytes) -> (state, outgoing)`.

As on the complete graph, with each hospital's own draw of neighbours in place of the whole cohort. What changes:

* The key packages are fixed by a tree's root before anybody draws, so nobody can be placed into a draw.
* A hospital shares its seeds with those that it drew, and masks with them and with those that drew it. It signs with
  whom, so that the holders of its shares can see it.
* No set of signers is common to all. A hospital opens shares once a threshold of those who hold *its own* shares
  agreed to the same survivors, since its own mask key cannot be recovered from then on; and it opens its share of a
  survivor's self-mask seed only if that survivor masked with it.

So whoever can be unmasked shares unknown masks with every honest hospital that helped, which are at least threshold -
(corrupt in any neighbourhood). A vector uploaded here is never masked again: a retry would draw other neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32

from privfm.errors import ProtocolError
from privfm.secagg.curves import check_x25519
from privfm.secagg.dealing import Held, check_delivery
from privfm.secagg.encoding import Writer, digest
from privfm.secagg.exchange import derive
from privfm.secagg.framing import Signed
from privfm.secagg.messages import Dealing, Delivery, KeyPackage, Survivors
from privfm.secagg.roster import COORDINATOR
from privfm.secagg.sparse.merkle import check_proof
from privfm.secagg.sparse.messages import Anchor, Choice, Evidence, Leaf, Masking, Neighbourhood, SparseDeliveries
from privfm.secagg.sparse.parameters import check_policy
from privfm.secagg.spec import LedgerMark, Neighbours, RoundSpec
from privfm.secagg.stages import blaming, check_ascending
from privfm.secagg.steps import (
    Finished,
    Ready,
    RoundKeys,
    Sharing,
    check_agreements,
    check_enough,
    check_keys,
    check_marks,
    reveal,
    sign_survivors,
)

__all__ = [
    "Advertised",
    "Agreed",
    "Chosen",
    "Finished",
    "Masked",
    "Shared",
    "advertise",
    "agree",
    "choose",
    "mask",
    "share",
    "sparse_context",
    "unmask",
]


@dataclass(frozen=True)
class Advertised(RoundKeys):
    """After advertise: waits for the root over all key packages."""


@dataclass(frozen=True)
class Chosen:
    """After choose: waits for its neighbours' key packages."""

    before: Advertised
    root: bytes
    context1: bytes
    coordinator_key: bytes
    drawn: tuple[str, ...]


@dataclass(frozen=True)
class Shared(Sharing):
    """After share: waits for what others dealt to it.

    Args:
        packages: of those it drew and of those that drew it.
        holders: those it drew that are there, to whom it dealt.
    """

    holders: tuple[str, ...]


@dataclass(frozen=True)
class Masked:
    """After mask: waits for the survivors. The seeds are gone."""

    own: Ready
    context1: bytes
    sharers: tuple[str, ...]
    dealings: Mapping[str, Signed[Dealing]]
    held: Mapping[str, Held] = field(repr=False)


@dataclass(frozen=True)
class Agreed:
    """After agree: waits for the agreements of those who hold its shares."""

    before: Masked
    context2: bytes
    survivors: tuple[str, ...]


def sparse_context(context0: bytes, root: bytes) -> bytes:
    """context1 of a sparse graph: the round and the root over its key packages."""
    return digest("sparse context1", context0, root)


def advertise(
    state: Ready, mark: LedgerMark, *, answered: tuple[int, int] | None, entropy: bytes
) -> tuple[Advertised, bytes]:
    """Fresh keys for the round, signed: as `secagg.client.advertise`, under a policy for sparse graphs.

    Raises:
        ProtocolError: the round is not newer or not this hospital's, or its graph breaks the policy.
    """
    state.spec.check_graph(sparse=True)
    check_policy(state.policy, state.spec.size, neighbours_of(state.spec))
    advertised = Advertised.fresh(state, mark, answered, entropy)
    return advertised, advertised.package.encode()


def choose(state: Advertised, incoming: bytes) -> tuple[Chosen, bytes]:
    """Neighbours drawn from the hospital's own entropy, once the root binds everybody's keys.

    Raises:
        ProtocolError: the root does not cover this hospital's own key package.
    """
    spec, name = state.own.spec, state.own.name
    with blaming(COORDINATOR, doing="anchor"):
        anchor = Anchor.decode(incoming)
        check_x25519(anchor.coordinator_key)
        check_proof(anchor.root, spec.size, spec.cohort.index(name), state.package.encode(), anchor.proof)
    context1 = sparse_context(spec.context0, anchor.root)
    drawn = _draw(state, context1)
    choice = Signed.by(state.own.identity, context1, Choice(name, drawn))
    return Chosen(state, anchor.root, context1, anchor.coordinator_key, drawn), choice.encode()


def _draw(state: Advertised, context1: bytes) -> tuple[str, ...]:
    """`degree` others, uniform among all sets of that size to within 2^-100."""
    spec, drawn, index = state.own.spec, set[str](), 0
    while len(drawn) < neighbours_of(spec).degree:
        number = int.from_bytes(derive(state.entropy, context1, "neighbour", index), "big")
        drawn |= {spec.cohort[number % spec.size]} - {state.own.name}
        index += 1
    return tuple(sorted(drawn))


def share(state: Chosen, incoming: bytes, *, seen: Mapping[str, LedgerMark]) -> tuple[Shared, bytes]:
    """Shares of both seeds for the drawn neighbours that are there, sealed and committed to.

    Args:
        incoming: the neighbourhood.
        seen: the highest mark of each peer that this hospital ever saw; store the new ones, `Shared.marks`, after.

    Raises:
        ProtocolError: a package is not in the tree or not sound, or too few of those drawn are there.
    """
    advertised, own, threshold = state.before, state.before.own, neighbours_of(state.before.own.spec).threshold
    with blaming(COORDINATOR, doing="neighbourhood"):
        packages = _check_leaves(state, Neighbourhood.decode(incoming).leaves)
        holders = tuple(name for name in state.drawn if name in packages)
        check_enough(len(holders), threshold, "of the neighbours drawn are there")
    check_keys({**packages, own.name: advertised.package.body})
    check_marks(packages, seen)
    points = {name: own.spec.cohort.index(name) + 1 for name in holders}
    deal, _ = advertised.deal(state.context1, points, threshold, packages)
    shared = Shared(
        own=own,
        context1=state.context1,
        coordinator_key=state.coordinator_key,
        packages=packages,
        channel_seed=advertised.channel_seed,
        mask_seed=advertised.mask_seed,
        self_seed=advertised.self_seed(state.context1),
        holders=holders,
    )
    return shared, deal.encode()


def _check_leaves(state: Chosen, leaves: Sequence[Leaf]) -> dict[str, KeyPackage]:
    """The packages of those who are there: every one drawn is in the tree, as a package or as absent."""
    spec, name = state.before.own.spec, state.before.own.name
    names = [leaf.name for leaf in leaves]
    check_ascending(names)
    if name in names or not set(state.drawn) <= set(names) <= set(spec.cohort):
        raise ProtocolError("not the neighbours drawn, or not of this cohort")
    packages = {}
    for leaf in leaves:
        check_proof(state.root, spec.size, spec.cohort.index(leaf.name), leaf.package, leaf.proof)
        if leaf.package:
            package = Signed.decode(KeyPackage, leaf.package)
            if package.body.sender != leaf.name:
                raise ProtocolError(f"the package of {leaf.name} speaks for {package.body.sender}")
            package.check(spec.roster.key_of(leaf.name), spec.context0)
            packages[leaf.name] = package.body
    return packages


def mask(
    state: Shared, incoming: bytes, vectors: Callable[[], Sequence[Int32[np.ndarray, " _"]]], *, threads: int = 1
) -> tuple[Masked, memoryview]:
    """The vectors, hidden by a self-mask and by a mask with each neighbour that dealt; and who those are, signed.

    Args:
        incoming: what others dealt to this hospital, and who of those it drew dealt.
        vectors: as in `secagg.client.mask`.

    Raises:
        ProtocolError: too few of those it drew dealt, or a share is not as committed to.
        ValueError: a vector does not fit its spec.
    """
    own = state.own
    with blaming(COORDINATOR, doing="deliveries"):
        deliveries = SparseDeliveries.decode(incoming)
        check_ascending([delivery.dealing.body.sender for delivery in deliveries.items])
        for delivery in deliveries.items:
            _check_delivery(state, delivery)
        check_ascending(deliveries.sharers)
        if not set(deliveries.sharers) <= set(state.holders):
            raise ProtocolError("sharers that this hospital did not draw")
        check_enough(len(deliveries.sharers), neighbours_of(own.spec).threshold, "of the neighbours drawn dealt")
    held = state.open(deliveries.items)
    peers = tuple(sorted({*held, *deliveries.sharers}))
    masking = Signed.by(own.identity, state.context1, Masking(own.name, peers))
    upload = state.upload(peers, vectors(), threads, prefix=bytes(Writer().blob(masking.encode())))
    dealings = {delivery.dealing.body.sender: delivery.dealing for delivery in deliveries.items}
    return Masked(own, state.context1, deliveries.sharers, dealings, held=held), upload


def _check_delivery(state: Shared, delivery: Delivery) -> None:
    dealer = delivery.dealing.body.sender
    if dealer not in state.packages:
        raise ProtocolError(f"{dealer} is no neighbour")
    check_delivery(delivery, state.own.spec.roster.key_of(dealer), state.context1, state.own.name)


def agree(state: Masked, incoming: bytes) -> tuple[Agreed, bytes]:
    """A signature under the survivor set.

    Raises:
        ProtocolError: a rule about the survivors is broken.
    """
    own = state.own
    with blaming(COORDINATOR, doing="survivors"):
        survivors = Survivors.decode(incoming).names
        check_ascending(survivors)
        if not set(survivors) <= set(own.spec.cohort):
            raise ProtocolError("survivors that were not invited")
        if own.name not in survivors:
            raise ProtocolError(f"{own.name} is asked to agree that it dropped out")
        check_enough(len(survivors), max(own.spec.threshold, own.policy.min_cohort), "survivors")
        kept = len(set(state.sharers) & set(survivors))
        check_enough(kept, neighbours_of(own.spec).threshold, "of the neighbours drawn survived")
    context2, agreement = sign_survivors(own, state.context1, survivors)
    return Agreed(state, context2, survivors), agreement


def unmask(state: Agreed, incoming: bytes) -> tuple[Finished, bytes]:
    """One share for each dealer: of its self-mask seed if it survived, else of its mask-key seed.

    Args:
        incoming: evidence about this hospital's own neighbourhood and about its dealers.

    Raises:
        ProtocolError: fewer than a threshold of those who hold its shares agreed, or a survivor did not mask with it.
    """
    masked, own = state.before, state.before.own
    with blaming(COORDINATOR, doing="evidence"):
        evidence = Evidence.decode(incoming)
        threshold = neighbours_of(own.spec).threshold
        check_agreements(own, state.context2, evidence.agreements, masked.sharers, threshold)
        peers = _check_maskings(masked, evidence.maskings)
        for dealer in set(state.survivors).intersection(masked.dealings):
            if own.name not in peers.get(dealer, ()):
                raise ProtocolError(f"{dealer} did not sign that it masked with {own.name}")
    answer = reveal(own, state.context2, masked.held, state.survivors)
    return Finished(state.survivors, state.context2), answer


def _check_maskings(state: Masked, maskings: Sequence[Signed[Masking]]) -> dict[str, tuple[str, ...]]:
    check_ascending([masking.body.sender for masking in maskings])
    for masking in maskings:
        if masking.body.sender not in state.dealings:
            raise ProtocolError(f"{masking.body.sender} did not deal to {state.own.name}")
        masking.check(state.own.spec.roster.key_of(masking.body.sender), state.context1)
    return {masking.body.sender: masking.body.peers for masking in maskings}


def neighbours_of(spec: RoundSpec) -> Neighbours:
    """The graph of a round that is known to have a sparse one."""
    if spec.neighbours is None:
        raise ValueError("neighbours=None: this round is for privfm.secagg")
    return spec.neighbours
