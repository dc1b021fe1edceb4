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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32

from privfm.errors import ProtocolError
from privfm.secagg import keys
from privfm.secagg.curves import check_x25519
from privfm.secagg.dealing import Held, check_delivery
from privfm.secagg.framing import Signed
from privfm.secagg.messages import Agreements, Cohort, Dealing, Deliveries, Delivery, KeyPackage, Survivors
from privfm.secagg.roster import COORDINATOR
from privfm.secagg.spec import LedgerMark
from privfm.secagg.stages import blaming, check_ascending, some_of
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
class Advertised(RoundKeys):
    """After advertise: waits for the cohort."""


@dataclass(frozen=True)
class Shared(Sharing):
    """After share: waits for the others' shares."""

    dealing: Signed[Dealing]
    held: Held = field(repr=False)


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
    advertised = Advertised.fresh(state, mark, answered, entropy)
    return advertised, advertised.package.encode()


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
    points = {name: point for point, name in enumerate(packages, start=1)}
    deal, held = state.deal(context1, points, state.own.spec.threshold, packages)
    shared = Shared(
        own=state.own,
        context1=context1,
        coordinator_key=cohort.coordinator_key,
        packages=packages,
        channel_seed=state.channel_seed,
        mask_seed=state.mask_seed,
        self_seed=state.self_seed(context1),
        dealing=deal.dealing,
        held=held[state.own.name],
    )
    return shared, deal.encode()


def _check_packages(state: Advertised, cohort: Cohort) -> dict[str, KeyPackage]:
    spec, own = state.own.spec, state.own.name
    packages = {package.body.sender: package for package in cohort.packages}
    check_ascending([package.body.sender for package in cohort.packages])
    strangers = set(packages) - set(spec.cohort)
    if strangers:
        raise ProtocolError(f"{some_of(strangers)} not invited to this round")
    if packages.get(own) != state.package:
        raise ProtocolError(f"the key package of {own} is not the one it sent")
    for name, package in packages.items():
        package.check(spec.roster.key_of(name), spec.context0)
    return {name: package.body for name, package in packages.items()}


def mask(
    state: Shared, incoming: bytes, vectors: Callable[[], Sequence[Int32[np.ndarray, " _"]]], *, threads: int = 1
) -> tuple[Masked, memoryview]:
    """The vectors, hidden by this hospital's self-mask and by a mask with each peer that dealt.

    Args:
        incoming: the others' deliveries.
        vectors: called for what `quantise` returned, in the order of the round's specs, once all of that holds: so a
            coordinator that lies costs a hospital neither its computing nor its budget.
        threads: changes the speed alone.

    Raises:
        ProtocolError: a rule about the sharers or their shares is broken.
        ValueError: a vector does not fit its spec.
    """
    own = state.own
    with blaming(COORDINATOR, doing="deliveries"):
        deliveries = Deliveries.decode(incoming).items
        check_ascending([delivery.dealing.body.sender for delivery in deliveries])
        for delivery in deliveries:
            _check_delivery(state, delivery)
        check_enough(len(deliveries) + 1, _needed(own), "sharers")
    held = state.open(deliveries)
    upload = state.upload(tuple(held), vectors(), threads)
    dealings = {delivery.dealing.body.sender: delivery.dealing for delivery in deliveries}
    masked = Masked(own, state.context1, {**dealings, own.name: state.dealing}, held={**held, own.name: state.held})
    return masked, upload


def _check_delivery(state: Shared, delivery: Delivery) -> None:
    """What an honest coordinator checked too."""
    dealing, own = delivery.dealing.body, state.own.name
    if dealing.sender not in state.packages or dealing.sender == own:
        raise ProtocolError(f"{dealing.sender} is no peer in this cohort")
    if tuple(entry.holder for entry in dealing.holders) != tuple(state.packages):
        raise ProtocolError(f"{dealing.sender} did not deal to this cohort")
    check_delivery(delivery, state.own.spec.roster.key_of(dealing.sender), state.context1, own)


def _needed(own: Ready) -> int:
    """How few sharers, and survivors, it answers for."""
    return max(own.spec.threshold, own.policy.min_cohort)


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
        strangers = set(survivors) - set(state.dealings)
        if strangers:
            raise ProtocolError(f"{some_of(strangers)} did not share, or did not share with {own.name}")
        if own.name not in survivors:
            raise ProtocolError(f"{own.name} is asked to agree that it dropped out")
        check_enough(len(survivors), _needed(own), "survivors")
        if bound_to is not None and set(survivors) != set(bound_to):
            raise ProtocolError("these vectors were agreed on before, with other survivors")
    context2, agreement = sign_survivors(own, state.context1, survivors)
    return Agreed(own, context2, state.dealings, survivors, held=state.held), agreement


def unmask(state: Agreed, incoming: bytes) -> tuple[Finished, bytes]:
    """One share for each hospital that dealt: of its self-mask seed if it survived, else of its mask-key seed.

    Args:
        incoming: the others' agreements.

    Raises:
        ProtocolError: fewer than a threshold of the survivors signed for this survivor set.
    """
    own = state.own
    with blaming(COORDINATOR, doing="agreements"):
        agreements = Agreements.decode(incoming).items
        check_agreements(own, state.context2, agreements, state.survivors, own.spec.threshold)
    dealings = [state.dealings[dealer] for dealer in sorted(state.dealings)]
    transcript = keys.transcript_hash(state.context2, dealings, agreements)
    answer = reveal(own, state.context2, state.held, state.survivors)
    return Finished(state.survivors, transcript), answer
