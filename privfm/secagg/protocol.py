"""A whole round in one place: every hospital and the coordinator, with bytes between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32

from privfm.secagg import server
from privfm.secagg.driver import Client
from privfm.secagg.identity import Identity
from privfm.secagg.spec import ClientPolicy, LedgerMark, RoundSpec
from privfm.secagg.stages import Stage

__all__ = ["Party", "run_round"]

_ORDER = tuple(Stage)


@dataclass(frozen=True)
class Party:
    """What one hospital brings to a round.

    Args:
        vectors: called for what `quantise` returned, in the order of the round's specs.
        entropy: 32 fresh secret bytes.
        leaves: the stage at which it falls silent; None when it stays.
    """

    identity: Identity
    policy: ClientPolicy
    mark: LedgerMark
    vectors: Callable[[], Sequence[Int32[np.ndarray, " _"]]]
    entropy: bytes = field(repr=False)
    answered: tuple[int, int] | None = None
    seen: Mapping[str, LedgerMark] = field(default_factory=dict)
    leaves: Stage | None = None

    def is_there(self, stage: Stage) -> bool:
        """Whether it still answers at this stage."""
        return self.leaves is None or _ORDER.index(stage) < _ORDER.index(self.leaves)


def run_round(spec: RoundSpec, parties: Mapping[str, Party], *, entropy: bytes, threads: int = 1) -> server.Outcome:
    """The sum of the vectors of those who stayed to be added up.

    Args:
        parties: by hospital; the cohort of the spec or fewer.
        entropy: the coordinator's 32 bytes.

    Raises:
        ProtocolError: at some stage fewer than the threshold answered, or somebody broke a rule.
    """

    def there(stage: Stage, asked: Mapping[str, object]) -> list[str]:
        return [name for name in asked if parties[name].is_there(stage)]

    clients = {name: Client(spec, party.identity, party.policy) for name, party in parties.items()}

    packages = {
        name: clients[name].advertise(
            parties[name].mark, answered=parties[name].answered, entropy=parties[name].entropy
        )
        for name in there(Stage.ADVERTISE, parties)
    }
    advertised, cohorts = server.advertise(spec, packages, entropy=entropy)

    deals = {name: clients[name].share(cohorts[name], seen=parties[name].seen) for name in there(Stage.SHARE, cohorts)}
    shared, deliveries = server.share(advertised, deals)

    total = server.MaskedSum(shared, threads=threads)
    for name in there(Stage.MASK, deliveries):
        total.add(name, clients[name].mask(deliveries[name], parties[name].vectors, threads=threads))
    masked, survivors = total.close()

    agreements = {name: clients[name].agree(survivors[name]) for name in there(Stage.AGREE, survivors)}
    agreed, answers = server.agree(masked, agreements)

    reveals = {name: clients[name].unmask(answers[name]) for name in there(Stage.UNMASK, answers)}
    return server.unmask(agreed, reveals, threads=threads)
