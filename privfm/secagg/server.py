"""The coordinator's part in a round: collects what arrived, checks it, and says what each hospital is sent next.

A hospital that is absent from a step, or whose message does not hold, has dropped out; the latter is recorded as a
fault. A step raises only when fewer than the threshold are left, or when no sum can be had. The coordinator keeps
one running total however many vectors arrive.

Rules: what a hospital signs is checked against the roster in the context of this very round before it is relayed. A
share that comes back must be the one its dealer committed to, a recovered self-mask seed the one committed to, and a
recovered mask-key seed must make the key that was advertised. So a bad share is its sender's doing, and a seed that
cannot be recovered from good shares its dealer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32, UInt32

from privfm.errors import ProtocolError
from privfm.secagg import keys
from privfm.secagg.collecting import Fault, Faults, check_signed, collect, read_signed, require
from privfm.secagg.curves import check_x25519
from privfm.secagg.dealing import check_boxes
from privfm.secagg.encoding import check_bytes
from privfm.secagg.exchange import exchange, public_key
from privfm.secagg.framing import Signed
from privfm.secagg.messages import (
    Agreement,
    Agreements,
    Cohort,
    Deal,
    Dealing,
    Deliveries,
    Delivery,
    KeyPackage,
    Reveal,
    Survivors,
)
from privfm.secagg.recovery import Recovery, unmask_totals
from privfm.secagg.spec import RoundSpec
from privfm.secagg.stages import Stage
from privfm.secagg.summing import RunningSum

__all__ = [
    "Advertised",
    "Agreed",
    "Fault",
    "Masked",
    "MaskedSum",
    "Outcome",
    "Shared",
    "advertise",
    "agree",
    "mask",
    "share",
    "unmask",
]


@dataclass(frozen=True)
class Advertised:
    """After advertise: waits for the shares."""

    spec: RoundSpec
    packages: Mapping[str, Signed[KeyPackage]]
    faults: Faults
    channel_seed: bytes = field(repr=False)

    @property
    def context1(self) -> bytes:
        return keys.cohort_context(self.spec.context0, self.packages.values())


@dataclass(frozen=True)
class Shared:
    """After share: waits for the masked vectors."""

    spec: RoundSpec
    context1: bytes
    packages: Mapping[str, KeyPackage]
    dealings: Mapping[str, Signed[Dealing]]
    faults: Faults
    channel_seed: bytes = field(repr=False)


@dataclass(frozen=True)
class Masked:
    """After mask: holds the masked sum, waits for the agreements."""

    shared: Shared
    survivors: tuple[str, ...]
    totals: tuple[UInt32[np.ndarray, " _"], ...]
    faults: Faults

    @property
    def context2(self) -> bytes:
        return keys.survivors_context(self.shared.context1, self.survivors)


@dataclass(frozen=True)
class Agreed:
    """After agree: waits for the shares that unmask the sum."""

    masked: Masked
    agreements: Mapping[str, Signed[Agreement]]
    faults: Faults


@dataclass(frozen=True)
class Outcome:
    """What a round gives.

    Args:
        sums: for each vector the exact sum of the survivors' levels.
        survivors: whose vectors those are.
        transcript: 32 bytes, the same for every hospital that finished.
        faults: whose messages did not count, and why.
    """

    sums: tuple[Int32[np.ndarray, " _"], ...]
    survivors: tuple[str, ...]
    transcript: bytes
    faults: Faults


def advertise(spec: RoundSpec, messages: Mapping[str, bytes], *, entropy: bytes) -> tuple[Advertised, dict[str, bytes]]:
    """Freeze the cohort: those whose key packages hold.

    Args:
        messages: key packages by hospital.
        entropy: 32 bytes of the operating system's entropy, for the key under which uploads are tagged.

    Raises:
        ProtocolError: fewer than the threshold are left.
    """
    spec.check_graph(sparse=False)
    check_bytes("entropy", entropy, 32)
    packages, faults = collect_packages(spec, messages)
    require(Stage.ADVERTISE, spec, packages, faults)
    cohort = Cohort(public_key(entropy), tuple(packages.values())).encode()
    return Advertised(spec, packages, faults, channel_seed=entropy), dict.fromkeys(packages, cohort)


def collect_packages(spec: RoundSpec, messages: Mapping[str, bytes]) -> tuple[dict[str, Signed[KeyPackage]], Faults]:
    """The key packages that hold, ascending by hospital; nobody's whose key stands twice."""

    def read(name: str, data: bytes) -> Signed[KeyPackage]:
        package = read_signed(KeyPackage, name, data, spec, spec.context0)
        check_x25519(package.body.channel_key)
        check_x25519(package.body.mask_key)
        return package

    packages, faults = collect(Stage.ADVERTISE, messages, spec.cohort, read)
    clashes = keys.key_clashes({name: package.body for name, package in packages.items()})
    faults += tuple(Fault(names, Stage.ADVERTISE, "show the same key") for names in clashes)
    clashing = {name for names in clashes for name in names}
    return {name: package for name, package in packages.items() if name not in clashing}, faults


def share(state: Advertised, messages: Mapping[str, bytes]) -> tuple[Shared, dict[str, bytes]]:
    """Hand each sharer what the other sharers dealt to it.

    Raises:
        ProtocolError: fewer than the threshold are left.
    """
    spec, context1 = state.spec, state.context1

    def read(name: str, data: bytes) -> Deal:
        deal = Deal.decode(data)
        check_signed(deal.dealing, name, spec, context1)
        if tuple(entry.holder for entry in deal.dealing.body.holders) != tuple(state.packages):
            raise ProtocolError("not dealt to this cohort")
        check_boxes(deal)
        return deal

    deals, faults = collect(Stage.SHARE, messages, tuple(state.packages), read)
    require(Stage.SHARE, spec, deals, state.faults + faults)
    outgoing = {
        holder: Deliveries(
            tuple(Delivery(deal.dealing, deal.boxes[place]) for name, deal in deals.items() if name != holder)
        ).encode()
        for place, holder in enumerate(state.packages)
        if holder in deals
    }
    packages = {name: package.body for name, package in state.packages.items()}
    dealings = {name: deal.dealing for name, deal in deals.items()}
    return Shared(spec, context1, packages, dealings, state.faults + faults, state.channel_seed), outgoing


class MaskedSum(RunningSum[None, tuple[Masked, dict[str, bytes]]]):
    """Adds masked vectors as they arrive; memory does not grow with their number.

    Args:
        state: of the stage before.
        threads: changes the speed alone.
    """

    def __init__(self, state: Shared, *, threads: int = 1) -> None:
        super().__init__(Stage.MASK, state.spec.vectors, threads)
        self._state = state

    def _read(self, name: str, message: bytes | memoryview) -> tuple[None, bytes | memoryview, bytes]:
        state = self._state
        if name not in state.dealings:
            raise ProtocolError("no upload is expected")
        shared = exchange(state.channel_seed, state.packages[name].channel_key)
        return None, message, keys.tag_key(shared, state.context1, name)

    def _freeze(self, added: Mapping[str, None], faults: Faults) -> tuple[Masked, dict[str, bytes]]:
        survivors, faults = tuple(added), self._state.faults + faults
        require(Stage.MASK, self._state.spec, survivors, faults)
        masked = Masked(self._state, survivors, self._totals, faults)
        return masked, dict.fromkeys(survivors, Survivors(survivors).encode())


def mask(
    state: Shared, messages: Mapping[str, bytes | memoryview], *, threads: int = 1
) -> tuple[Masked, dict[str, bytes]]:
    """Add up what arrived. `MaskedSum` does the same one upload at a time.

    Raises:
        ProtocolError: fewer than the threshold are left.
    """
    return MaskedSum(state, threads=threads).add_all(messages)


def agree(state: Masked, messages: Mapping[str, bytes]) -> tuple[Agreed, dict[str, bytes]]:
    """Show the survivors who signed for them.

    Raises:
        ProtocolError: fewer than the threshold are left.
    """
    spec, context2 = state.shared.spec, state.context2

    def read(name: str, data: bytes) -> Signed[Agreement]:
        return read_signed(Agreement, name, data, spec, context2)

    agreements, faults = collect(Stage.AGREE, messages, state.survivors, read)
    require(Stage.AGREE, spec, agreements, state.faults + faults)
    answer = Agreements(tuple(agreements.values())).encode()
    return Agreed(state, agreements, state.faults + faults), dict.fromkeys(agreements, answer)


def unmask(state: Agreed, messages: Mapping[str, bytes], *, threads: int = 1) -> Outcome:
    """Recover the seeds that must be known, take their masks off the total, and lift the sum.

    Raises:
        ProtocolError: fewer than the threshold opened good shares, or a hospital dealt shares of no seed.
    """
    masked, shared = state.masked, state.masked.shared
    recovery = Recovery(
        context1=shared.context1,
        vectors=shared.spec.vectors,
        packages=shared.packages,
        dealings={name: dealing.body for name, dealing in shared.dealings.items()},
        survivors=frozenset(masked.survivors),
        points={name: point for point, name in enumerate(shared.packages, start=1)},
        threshold=shared.spec.threshold,
    )

    def read(name: str, data: bytes) -> Reveal:
        reveal = read_signed(Reveal, name, data, shared.spec, masked.context2).body
        recovery.check_openings(reveal, tuple(shared.dealings))
        return reveal

    reveals, faults = collect(Stage.UNMASK, messages, tuple(state.agreements), read)
    faults = state.faults + faults
    require(Stage.UNMASK, shared.spec, reveals, faults)
    dropped = set(shared.dealings) - set(masked.survivors)
    masks = recovery.masks_in_total(reveals, dict.fromkeys(dropped, masked.survivors))
    sums = unmask_totals(shared.spec.vectors, masked.totals, masks, threads)
    transcript = keys.transcript_hash(masked.context2, shared.dealings.values(), state.agreements.values())
    return Outcome(sums, masked.survivors, transcript, faults)
