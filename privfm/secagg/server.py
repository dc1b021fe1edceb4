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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32, UInt32

from privfm.errors import ProtocolError
from privfm.secagg import keys
from privfm.secagg.chunks import spread
from privfm.secagg.collecting import Fault, Faults, check_signed, collect, read_signed, require
from privfm.secagg.curves import check_x25519
from privfm.secagg.dealing import check_boxes
from privfm.secagg.encoding import check_bytes
from privfm.secagg.exchange import exchange, exchanges, public_key
from privfm.secagg.masks import Mask, masked_pieces
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
    Seed,
    Signed,
    Survivors,
)
from privfm.secagg.ring import lift
from privfm.secagg.shamir import recover
from privfm.secagg.spec import RoundSpec
from privfm.secagg.stages import Stage
from privfm.secagg.upload import add_upload

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


class MaskedSum:
    """Adds masked vectors as they arrive; memory does not grow with their number.

    Args:
        state: of the stage before.
        threads: changes the speed alone.
    """

    def __init__(self, state: Shared, *, threads: int = 1) -> None:
        self._state = state
        self._threads = threads
        self._totals = tuple(np.zeros(vector.length, np.uint32) for vector in state.spec.vectors)
        self._names: list[str] = []
        self._faults: list[Fault] = []
        self._closed = False

    def add(self, name: str, message: bytes | memoryview) -> None:
        """Add one hospital's upload; record a fault if it does not hold, or if it is its second."""
        state = self._state
        if self._closed:
            raise ValueError(f"name={name!r}: the sum is closed")
        try:
            if name not in state.dealings or name in self._names:
                raise ProtocolError("no upload is expected")
            shared = exchange(state.channel_seed, state.packages[name].channel_key)
            add_upload(
                state.spec.vectors, message, keys.tag_key(shared, state.context1, name), self._totals, self._threads
            )
        except ProtocolError as error:
            self._faults.append(Fault((name,), Stage.MASK, str(error)))
        else:
            self._names.append(name)

    def close(self) -> tuple[Masked, dict[str, bytes]]:
        """Freeze the survivors: those whose vectors were added.

        Raises:
            ProtocolError: fewer than the threshold are left.
        """
        self._closed = True
        faults = (*self._state.faults, *self._faults)
        survivors = tuple(sorted(self._names))
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
    total = MaskedSum(state, threads=threads)
    for name, message in messages.items():
        total.add(name, message)
    return total.close()


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
    spec = shared.spec

    def read(name: str, data: bytes) -> Reveal:
        reveal = read_signed(Reveal, name, data, spec, masked.context2).body
        _check_openings(masked, reveal)
        return reveal

    reveals, faults = collect(Stage.UNMASK, messages, tuple(state.agreements), read)
    faults = state.faults + faults
    require(Stage.UNMASK, spec, reveals, faults)
    masks = _masks_in_total(masked, _recover_seeds(masked, reveals))
    sums = unmask_totals(spec, masked.totals, masks, threads)
    transcript = keys.transcript_hash(masked.context2, shared.dealings.values(), state.agreements.values())
    return Outcome(sums, masked.survivors, transcript, faults)


def _check_openings(masked: Masked, reveal: Reveal) -> None:
    shared = masked.shared
    expected = [(dealer, _seed_to_open(masked, dealer)) for dealer in shared.dealings]
    if [(opening.dealer, opening.seed) for opening in reveal.openings] != expected:
        raise ProtocolError("opens other shares than it was asked for")
    place = list(shared.packages).index(reveal.sender)
    for opening in reveal.openings:
        committed = shared.dealings[opening.dealer].body.holders[place].of(opening.seed)
        if opening.share.commitment(shared.context1, opening.dealer, reveal.sender, opening.seed) != committed:
            raise ProtocolError(f"returns another share than {opening.dealer} dealt")


def _seed_to_open(masked: Masked, dealer: str) -> Seed:
    return Seed.SELF_MASK if dealer in masked.survivors else Seed.MASK_KEY


def _recover_seeds(masked: Masked, reveals: Mapping[str, Reveal]) -> dict[str, bytes]:
    points = {name: point for point, name in enumerate(masked.shared.packages, start=1)}
    seeds = {}
    for place, dealer in enumerate(masked.shared.dealings):
        shares = {points[name]: reveal.openings[place].share.value for name, reveal in reveals.items()}
        seed = recover(shares, masked.shared.spec.threshold)
        if seed is None or not _is_seed_of(masked, dealer, seed):
            raise ProtocolError(f"{dealer} dealt shares that do not make the seed it committed to", (dealer,))
        seeds[dealer] = seed
    return seeds


def _is_seed_of(masked: Masked, dealer: str, seed: bytes) -> bool:
    shared = masked.shared
    if _seed_to_open(masked, dealer) is Seed.MASK_KEY:
        return public_key(seed) == shared.packages[dealer].mask_key
    return keys.seed_commitment(shared.context1, dealer, seed) == shared.dealings[dealer].body.self_seed


def _masks_in_total(masked: Masked, seeds: Mapping[str, bytes]) -> list[list[Mask]]:
    """For each vector, every mask that does not cancel in the total."""
    shared, vectors = masked.shared, masked.shared.spec.vectors
    by_party = []
    for dealer, seed in seeds.items():
        if dealer in masked.survivors:
            by_party.append(keys.self_masks(seed, shared.context1, dealer, vectors))
            continue
        secrets = exchanges(seed, (shared.packages[survivor].mask_key for survivor in masked.survivors))
        for survivor, secret in zip(masked.survivors, secrets, strict=True):
            by_party.append(keys.pair_masks(secret, shared.context1, survivor, dealer, vectors))
    return [list(masks) for masks in zip(*by_party, strict=True)]


def unmask_totals(
    spec: RoundSpec, totals: Sequence[UInt32[np.ndarray, " _"]], masks: Sequence[Sequence[Mask]], threads: int
) -> tuple[Int32[np.ndarray, " _"], ...]:
    """Each total without its masks, as signed numbers. The totals stay as they are."""
    return tuple(
        _unmasked(total, vector_masks, vector.ring_bits, threads)
        for vector, total, vector_masks in zip(spec.vectors, totals, masks, strict=True)
    )


def _unmasked(
    total: UInt32[np.ndarray, " d"], masks: Sequence[Mask], ring_bits: int, threads: int
) -> Int32[np.ndarray, " d"]:
    result = np.empty(len(total), np.int32)
    removal = [mask.negated() for mask in masks]

    def take_off(start: int, stop: int) -> None:
        for piece, words in masked_pieces(total, removal, start, stop):
            lift(words, ring_bits, result[piece])

    spread(len(total), threads, take_off)
    return result
