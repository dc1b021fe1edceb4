"""Whether masks are fresh: two rounds over the same vectors must look like two unrelated ones."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from scipy import stats

from privfm.secagg import Client, ClientPolicy, Identity, LedgerMark, Roster, RoundSpec, VectorSpec, server
from privfm_attacks.verdicts import Finding

__all__ = ["masks_are_fresh"]

NAMES = ("a", "b", "c")
LENGTH = 20_000


def masks_are_fresh(alpha: float) -> Iterator[Finding]:
    """Play two rounds of three hospitals whose vectors are zero, and compare what the coordinator is sent.

    Args:
        alpha: chance of a false alarm of each comparison.
    """
    identities = {name: Identity.generate(name, os.urandom(32)) for name in NAMES}
    roster = Roster.first("audit", {name: identity.public for name, identity in identities.items()})
    first, second = (_uploads(_spec(roster, number), identities) for number in (1, 2))
    pairs = {
        "two rounds": (first["a"], second["a"]),
        "two hospitals": (first["a"], first["b"]),
        "a mask and nothing": (first["a"], np.zeros_like(first["a"])),
    }
    for name, (one, other) in pairs.items():
        same = int((one == other).sum())
        p = stats.binomtest(same, one.size, 1 / 256, alternative="greater").pvalue
        detail = f"{same / one.size:.4f} of bytes agree, {1 / 256:.4f} by chance (p = {p:.2g})"
        yield Finding(f"fresh masks, {name}", bool(p > alpha), detail)


def _spec(roster: Roster, number: int) -> RoundSpec:
    return RoundSpec(
        run=b"an audit of masks",
        round=number,
        attempt=0,
        plan_hash=bytes(32),
        roster=roster,
        model_hash=bytes(32),
        vectors=(VectorSpec.fit("update", LENGTH, 1.0, clients=len(NAMES)),),
        cohort=NAMES,
        threshold=len(NAMES),
    )


def _uploads(spec: RoundSpec, identities: dict[str, Identity]) -> dict[str, np.ndarray]:
    """What each hospital sends at the masking stage, as bytes."""
    clients = {name: Client(spec, identity, ClientPolicy(0, 2)) for name, identity in identities.items()}
    packages = {
        name: client.advertise(LedgerMark(spec.round, bytes(32)), answered=None, entropy=os.urandom(32))
        for name, client in clients.items()
    }
    advertised, cohorts = server.advertise(spec, packages, entropy=os.urandom(32))
    deals = {name: client.share(cohorts[name], seen={}) for name, client in clients.items()}
    _, deliveries = server.share(advertised, deals)
    blank = [np.zeros(LENGTH, np.int32)]
    uploads = {name: client.mask(deliveries[name], lambda: blank) for name, client in clients.items()}
    return {name: np.frombuffer(upload, np.uint8)[-3 * LENGTH :] for name, upload in uploads.items()}
