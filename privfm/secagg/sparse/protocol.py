"""A whole round on a sparse graph in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from privfm.secagg.client import Ready
from privfm.secagg.protocol import Party
from privfm.secagg.server import Outcome
from privfm.secagg.sparse import client, server
from privfm.secagg.spec import RoundSpec
from privfm.secagg.stages import SparseStage

__all__ = ["run_sparse_round"]

_ORDER = tuple(SparseStage)


def run_sparse_round(
    spec: RoundSpec,
    parties: Mapping[str, Party],
    *,
    entropy: bytes,
    leaves: Mapping[str, SparseStage] | None = None,
    threads: int = 1,
) -> Outcome:
    """The sum of the vectors of those who stayed to be added up.

    Args:
        parties: by hospital; the cohort of the spec or fewer.
        entropy: the coordinator's 32 bytes.
        leaves: the stage at which a hospital falls silent.

    Raises:
        ProtocolError: at some stage, or around some hospital, fewer than a threshold answered.
    """
    states: dict[str, Any] = {name: Ready(spec, party.identity, party.policy) for name, party in parties.items()}

    def step(stage: SparseStage, mail: Mapping[str, bytes], answer: Callable[[str, bytes], Any]) -> dict[str, Any]:
        sent = {}
        for name, incoming in mail.items():
            if leaves is None or name not in leaves or _ORDER.index(stage) < _ORDER.index(leaves[name]):
                states[name], sent[name] = answer(name, incoming)
        return sent

    packages = step(
        SparseStage.ADVERTISE,
        dict.fromkeys(parties, b""),
        lambda name, _: client.advertise(
            states[name], parties[name].mark, answered=parties[name].answered, entropy=parties[name].entropy
        ),
    )
    advertised, mail = server.advertise(spec, packages, entropy=entropy)
    choices = step(SparseStage.CHOOSE, mail, lambda name, data: client.choose(states[name], data))
    chosen, mail = server.choose(advertised, choices)
    deals = step(SparseStage.SHARE, mail, lambda name, data: client.share(states[name], data, seen=parties[name].seen))
    shared, mail = server.share(chosen, deals)
    total = server.MaskedSum(shared, threads=threads)

    def mask_and_add(name: str, data: bytes) -> tuple[client.Masked, None]:
        masked, upload = client.mask(states[name], data, parties[name].vectors, threads=threads)
        total.add(name, upload)
        return masked, None

    step(SparseStage.MASK, mail, mask_and_add)
    masked, mail = total.close()
    agreements = step(SparseStage.AGREE, mail, lambda name, data: client.agree(states[name], data))
    agreed, mail = server.agree(masked, agreements)
    reveals = step(SparseStage.UNMASK, mail, lambda name, data: client.unmask(states[name], data))
    return server.unmask(agreed, reveals, threads=threads)
