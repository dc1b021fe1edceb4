"""The coordinator's part in a round on a sparse graph, mirrored from the hospitals' six steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt32

from privfm.errors import ProtocolError
from privfm.secagg import keys
from privfm.secagg.collecting import Faults, check_signed, collect, read_signed, require
from privfm.secagg.dealing import check_boxes
from privfm.secagg.encoding import Reader, check_bytes
from privfm.secagg.exchange import exchange, public_key
from privfm.secagg.framing import MESSAGE_LIMIT, Signed
from privfm.secagg.messages import Agreement, Deal, Delivery, KeyPackage, Reveal, Survivors
from privfm.secagg.recovery import Recovery, unmask_totals
from privfm.secagg.server import Outcome, collect_packages
from privfm.secagg.sparse.client import neighbours_of, sparse_context
from privfm.secagg.sparse.merkle import Tree
from privfm.secagg.sparse.messages import Anchor, Choice, Evidence, Leaf, Masking, Neighbourhood, SparseDeliveries
from privfm.secagg.spec import RoundSpec
from privfm.secagg.stages import SparseStage
from privfm.secagg.summing import RunningSum

__all__ = [
    "Advertised",
    "Agreed",
    "Chosen",
    "Masked",
    "MaskedSum",
    "Shared",
    "advertise",
    "agree",
    "choose",
    "mask",
    "share",
    "unmask",
]


@dataclass(frozen=True)
class Advertised:
    """After advertise: waits for everybody's choice of neighbours."""

    spec: RoundSpec
    packages: Mapping[str, Signed[KeyPackage]]
    tree: Tree
    context1: bytes
    faults: Faults
    channel_seed: bytes = field(repr=False)


@dataclass(frozen=True)
class Chosen:
    """After choose: waits for the shares.

    Args:
        drawn: by hospital, those that it drew and that are there.
    """

    before: Advertised
    drawn: Mapping[str, tuple[str, ...]]
    faults: Faults


@dataclass(frozen=True)
class Shared:
    """After share: waits for the masked vectors.

    Args:
        peers: by hospital, with whom it is to mask.
    """

    before: Advertised
    deals: Mapping[str, Deal]
    peers: Mapping[str, tuple[str, ...]]
    faults: Faults


@dataclass(frozen=True)
class Masked:
    """After mask: holds the masked sum, waits for the agreements."""

    shared: Shared
    maskings: Mapping[str, Signed[Masking]]
    totals: tuple[UInt32[np.ndarray, " _"], ...]
    faults: Faults

    @property
    def survivors(self) -> tuple[str, ...]:
        return tuple(self.maskings)

    @property
    def context2(self) -> bytes:
        return keys.survivors_context(self.shared.before.context1, self.survivors)


@dataclass(frozen=True)
class Agreed:
    """After agree: waits for the shares that unmask the sum."""

    masked: Masked
    asked: tuple[str, ...]
    faults: Faults


def advertise(spec: RoundSpec, messages: Mapping[str, bytes], *, entropy: bytes) -> tuple[Advertised, dict[str, bytes]]:
    """Freeze the cohort under a root; an absent hospital's leaf is empty.

    Raises:
        ProtocolError: fewer than the threshold are left.
    """
    spec.check_graph(sparse=True)
    check_bytes("entropy", entropy, 32)
    packages, faults = collect_packages(spec, messages)
    require(SparseStage.ADVERTISE, spec, packages, faults)
    tree = Tree([packages[name].encode() if name in packages else b"" for name in spec.cohort])
    context1 = sparse_context(spec.context0, tree.root)
    anchors = {
        name: Anchor(public_key(entropy), tree.root, tree.proof(spec.cohort.index(name))).encode() for name in packages
    }
    return Advertised(spec, packages, tree, context1, faults, channel_seed=entropy), anchors


def choose(state: Advertised, messages: Mapping[str, bytes]) -> tuple[Chosen, dict[str, bytes]]:
    """Show each hospital those it drew and those that drew it.

    Raises:
        ProtocolError: fewer than the threshold are left.
    """
    spec, degree = state.spec, neighbours_of(state.spec).degree

    def read(name: str, data: bytes) -> tuple[str, ...]:
        drawn = read_signed(Choice, name, data, spec, state.context1).body.neighbours
        if list(drawn) != sorted(set(drawn) - {name}) or len(drawn) != degree or not set(drawn) <= set(spec.cohort):
            raise ProtocolError("drew something other than its number of neighbours")
        return drawn

    choices, faults = collect(SparseStage.CHOOSE, messages, tuple(state.packages), read)
    faults = state.faults + faults
    require(SparseStage.CHOOSE, spec, choices, faults)
    chosen_by: defaultdict[str, set[str]] = defaultdict(set)
    for name, drawn in choices.items():
        for neighbour in drawn:
            chosen_by[neighbour].add(name)
    leaves = {name: _leaf(state, name) for name in spec.cohort}
    outgoing = {
        name: Neighbourhood(tuple(leaves[peer] for peer in sorted({*drawn, *chosen_by[name]}))).encode()
        for name, drawn in choices.items()
    }
    there = {name: tuple(peer for peer in drawn if peer in state.packages) for name, drawn in choices.items()}
    return Chosen(state, there, faults), outgoing


def _leaf(state: Advertised, name: str) -> Leaf:
    package = state.packages[name].encode() if name in state.packages else b""
    return Leaf(name, package, state.tree.proof(state.spec.cohort.index(name)))


def share(state: Chosen, messages: Mapping[str, bytes]) -> tuple[Shared, dict[str, bytes]]:
    """Hand each sharer what other sharers dealt to it, and which of its own holders dealt.

    Raises:
        ProtocolError: fewer than the threshold are left.
    """
    spec, context1 = state.before.spec, state.before.context1

    def read(name: str, data: bytes) -> Deal:
        deal = Deal.decode(data)
        check_signed(deal.dealing, name, spec, context1)
        if tuple(entry.holder for entry in deal.dealing.body.holders) != state.drawn[name]:
            raise ProtocolError("not dealt to the neighbours it drew")
        check_boxes(deal)
        return deal

    deals, faults = collect(SparseStage.SHARE, messages, tuple(state.drawn), read)
    faults = state.faults + faults
    require(SparseStage.SHARE, spec, deals, faults)
    dealt_to: defaultdict[str, list[Delivery]] = defaultdict(list)
    for deal in deals.values():
        for entry, box in zip(deal.dealing.body.holders, deal.boxes, strict=True):
            dealt_to[entry.holder].append(Delivery(deal.dealing, box))
    sharers = {name: tuple(peer for peer in state.drawn[name] if peer in deals) for name in deals}
    dealers = {name: [delivery.dealing.body.sender for delivery in dealt_to[name]] for name in deals}
    peers = {name: tuple(sorted({*sharers[name], *dealers[name]})) for name in deals}
    outgoing = {name: SparseDeliveries(tuple(dealt_to[name]), sharers[name]).encode() for name in deals}
    return Shared(state.before, deals, peers, faults), outgoing


class MaskedSum(RunningSum[Signed[Masking], tuple[Masked, dict[str, bytes]]]):
    """Adds masked vectors as they arrive; memory does not grow with their number.

    Args:
        state: of the stage before.
        threads: changes the speed alone.
    """

    def __init__(self, state: Shared, *, threads: int = 1) -> None:
        super().__init__(SparseStage.MASK, state.before.spec.vectors, threads)
        self._state = state

    def _read(self, name: str, message: bytes | memoryview) -> tuple[Signed[Masking], memoryview, bytes]:
        before = self._state.before
        if name not in self._state.peers:
            raise ProtocolError("no upload is expected")
        head = Reader(message).blob(MESSAGE_LIMIT)
        masking = read_signed(Masking, name, head, before.spec, before.context1)
        if masking.body.peers != self._state.peers[name]:
            raise ProtocolError("masked with others than its neighbours")
        shared = exchange(before.channel_seed, before.packages[name].body.channel_key)
        return masking, memoryview(message)[4 + len(head) :], keys.tag_key(shared, before.context1, name)

    def _freeze(self, added: Mapping[str, Signed[Masking]], faults: Faults) -> tuple[Masked, dict[str, bytes]]:
        faults = self._state.faults + faults
        require(SparseStage.MASK, self._state.before.spec, added, faults)
        masked = Masked(self._state, added, self._totals, faults)
        return masked, dict.fromkeys(added, Survivors(masked.survivors).encode())


def mask(
    state: Shared, messages: Mapping[str, bytes | memoryview], *, threads: int = 1
) -> tuple[Masked, dict[str, bytes]]:
    """Add up what arrived. `MaskedSum` does the same one upload at a time.

    Raises:
        ProtocolError: fewer than the threshold are left.
    """
    return MaskedSum(state, threads=threads).add_all(messages)


def agree(state: Masked, messages: Mapping[str, bytes]) -> tuple[Agreed, dict[str, bytes]]:
    """Show each hospital who of its holders agreed, and with whom those who dealt to it are masked.

    Raises:
        ProtocolError: fewer than the threshold are left.
    """
    spec, context2 = state.shared.before.spec, state.context2

    def read(name: str, data: bytes) -> Signed[Agreement]:
        return read_signed(Agreement, name, data, spec, context2)

    agreements, faults = collect(SparseStage.AGREE, messages, state.survivors, read)
    faults = state.faults + faults
    require(SparseStage.AGREE, spec, agreements, faults)
    dealers = _dealers_to(state)
    outgoing = {
        name: Evidence(
            tuple(agreements[holder] for holder in _holders(state, name) if holder in agreements),
            tuple(state.maskings[dealer] for dealer in dealers[name] if dealer in state.maskings),
        ).encode()
        for name in agreements
    }
    return Agreed(state, tuple(agreements), faults), outgoing


def _holders(masked: Masked, dealer: str) -> list[str]:
    """Who holds a dealer's shares and survived, ascending."""
    holders = (entry.holder for entry in masked.shared.deals[dealer].dealing.body.holders)
    return [holder for holder in holders if holder in masked.maskings]


def _dealers_to(masked: Masked) -> dict[str, list[str]]:
    """By holder, who dealt to it, ascending."""
    dealers: defaultdict[str, list[str]] = defaultdict(list)
    for name, deal in masked.shared.deals.items():
        for entry in deal.dealing.body.holders:
            dealers[entry.holder].append(name)
    return dealers


def unmask(state: Agreed, messages: Mapping[str, bytes], *, threads: int = 1) -> Outcome:
    """Recover the seeds that must be known, take their masks off the total, and lift the sum.

    Raises:
        ProtocolError: around some hospital too few opened good shares, or a hospital dealt shares of no seed.
    """
    masked, before, dealers = state.masked, state.masked.shared.before, _dealers_to(state.masked)
    recovery = Recovery(
        context1=before.context1,
        vectors=before.spec.vectors,
        packages={name: package.body for name, package in before.packages.items()},
        dealings={name: deal.dealing.body for name, deal in masked.shared.deals.items()},
        survivors=frozenset(masked.survivors),
        points={name: point for point, name in enumerate(before.spec.cohort, start=1)},
        threshold=neighbours_of(before.spec).threshold,
    )

    def read(name: str, data: bytes) -> Reveal:
        reveal = read_signed(Reveal, name, data, before.spec, masked.context2).body
        recovery.check_openings(reveal, dealers[name])
        return reveal

    reveals, faults = collect(SparseStage.UNMASK, messages, state.asked, read)
    faults = state.faults + faults
    require(SparseStage.UNMASK, before.spec, reveals, faults)
    masks = recovery.masks_in_total(reveals, _dropped_peers(masked))
    sums = unmask_totals(before.spec.vectors, masked.totals, masks, threads)
    return Outcome(sums, masked.survivors, masked.context2, faults)


def _dropped_peers(masked: Masked) -> dict[str, list[str]]:
    """By hospital that dropped out, the survivors that masked with it."""
    masked_with: defaultdict[str, list[str]] = defaultdict(list)
    for survivor, masking in masked.maskings.items():
        for peer in masking.body.peers:
            if peer not in masked.maskings:
                masked_with[peer].append(survivor)
    return masked_with
