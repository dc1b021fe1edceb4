"""Whether masks are fresh: of rounds over the same vectors, every mask must look unrelated to every other.

A hospital's self-masks and the masks that it shares with each peer are looked at apart, because in what it sends one
kind hides that the other repeats; and what it sends must be their sum.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt32
from scipy import stats

from privfm.secagg import ClientPolicy, Identity, LedgerMark, Roster, RoundSpec, VectorSpec, client, server
from privfm.secagg.chunks import CHUNK
from privfm.secagg.masks import Mask, masked_pieces
from privfm.secagg.ring import pack, packed_bytes
from privfm.secagg.steps import Ready
from privfm.secagg.upload import TAG_BYTES
from privfm_attacks.verdicts import Finding

__all__ = ["masks_are_fresh"]

NAMES = ("a", "b", "c")
LENGTH, VECTORS, RING_BITS = 8_000, 2, 24
NUMBERS = ((1, 0), (1, 1), (2, 0))
"""Rounds and attempts that are played."""


class _Where(NamedTuple):
    """What a mask is for."""

    number: tuple[int, int]
    owner: str
    peer: str
    vector: int


class _Played(NamedTuple):
    """A round's masks, and how much of what was sent is not their sum."""

    masks: dict[_Where, UInt8[np.ndarray, " bytes"]]
    off: float


def masks_are_fresh(alpha: float) -> Iterator[Finding]:
    """Play rounds of three hospitals whose vectors are zero, and compare all masks that went into them.

    Args:
        alpha: chance of a false alarm of each comparison.
    """
    identities = {name: Identity.generate(name, os.urandom(32)) for name in NAMES}
    roster = Roster.first("audit", {name: identity.public for name, identity in identities.items()})
    played = [_play(_spec(roster, number), identities) for number in NUMBERS]
    masks = {where: mask for each in played for where, mask in each.masks.items()}
    groups: dict[str, list[float]] = {}
    for one, two in combinations(masks, 2):
        if _mirrored(one, two):
            continue
        groups.setdefault(_difference(one, two), []).append(float((masks[one] == masks[two]).mean()))
    for name, shares in groups.items():
        yield _unrelated(f"fresh masks, {name}", max(shares), 4 * LENGTH, len(shares), alpha)
    blank = max(float((mask == 0).mean()) for mask in masks.values())
    yield _unrelated("fresh masks, a mask and nothing", blank, 4 * LENGTH, len(masks), alpha)
    yield _unrelated("fresh masks, pieces of one", _likest_pieces(), CHUNK, 3, alpha)
    off = max(each.off for each in played)
    yield Finding("masks as sent", off == 0.0, f"{off:.4f} of an upload's bytes are not the sum of its masks")


def _likest_pieces() -> float:
    """How much the pieces, in which a long mask is made, are like each other at most."""
    long = np.zeros(3 * CHUNK, np.uint32)
    made = masked_pieces(long, [Mask(os.urandom(32), 1)], 0, len(long))
    mask = np.concatenate([words.view(np.uint8)[::4].copy() for _, words in made])
    return max(float((one == two).mean()) for one, two in combinations(mask.reshape(3, -1), 2))


def _unrelated(name: str, share: float, size: int, looks: int, alpha: float) -> Finding:
    """Whether the largest of some shares of equal bytes is one that chance gives."""
    p = stats.binomtest(round(share * size), size, 1 / 256, alternative="greater").pvalue
    detail = f"{share:.4f} of bytes agree at most, {1 / 256:.4f} by chance (p = {p:.2g}, {looks} pairs)"
    return Finding(name, bool(p * looks > alpha), detail)


def _mirrored(one: _Where, two: _Where) -> bool:
    """Whether it is one mask: what two hospitals share."""
    return one == _Where(two.number, two.peer, two.owner, two.vector)


def _difference(one: _Where, two: _Where) -> str:
    """The name for what tells two masks apart."""
    if (one.owner == one.peer) != (two.owner == two.peer):
        return "self and pair"
    kind = "self" if one.owner == one.peer else "pair"
    if one.number[0] != two.number[0]:
        return f"two rounds, {kind}"
    if one.number != two.number:
        return f"two attempts, {kind}"
    if {one.owner, one.peer} != {two.owner, two.peer}:
        return f"two hospitals, {kind}"
    return f"two vectors, {kind}"


def _spec(roster: Roster, number: tuple[int, int]) -> RoundSpec:
    return RoundSpec(
        run=b"an audit of masks",
        round=number[0],
        attempt=number[1],
        plan_hash=bytes(32),
        roster=roster,
        model_hash=bytes(32),
        vectors=tuple(
            VectorSpec.fit(f"vector {index}", LENGTH, 1.0, clients=len(NAMES), ring_bits=RING_BITS)
            for index in range(VECTORS)
        ),
        cohort=NAMES,
        threshold=len(NAMES),
    )


def _play(spec: RoundSpec, identities: dict[str, Identity]) -> _Played:
    """A round up to the masking stage."""
    mark = LedgerMark(spec.round, bytes(32))
    first = {
        name: client.advertise(Ready(spec, identity, ClientPolicy(0, 2)), mark, answered=None, entropy=os.urandom(32))
        for name, identity in identities.items()
    }
    packages = {name: package for name, (_, package) in first.items()}
    advertised, cohorts = server.advertise(spec, packages, entropy=os.urandom(32))
    shared = {name: client.share(state, cohorts[name], seen={}) for name, (state, _) in first.items()}
    _, deliveries = server.share(advertised, {name: deal for name, (_, deal) in shared.items()})
    masks: dict[_Where, UInt8[np.ndarray, " bytes"]] = {}
    off = 0.0
    for name, (state, _) in shared.items():
        peers = [peer for peer in NAMES if peer != name]
        by_vector = state.masks(peers)
        blank = [np.zeros(LENGTH, np.int32) for _ in spec.vectors]
        _, upload = client.mask(state, deliveries[name], lambda blank=blank: blank)  # type: ignore[misc]
        off = max(off, _off(upload, by_vector))
        for vector, used in enumerate(by_vector):
            for peer, mask in zip([name, *peers], used, strict=True):
                masks[_Where((spec.round, spec.attempt), name, peer, vector)] = _written([Mask(mask.key, 1)]).view(
                    np.uint8
                )
    return _Played(masks, off)


def _written(masks: list[Mask]) -> UInt32[np.ndarray, " entries"]:
    """The masks' sum over zeros."""
    pieces = masked_pieces(np.zeros(LENGTH, np.uint32), masks, 0, LENGTH)
    return np.concatenate([words.copy() for _, words in pieces])


def _off(upload: memoryview, masks: list[list[Mask]]) -> float:
    """The share of an upload's bytes that are not what its masks add up to."""
    size, sent = packed_bytes(LENGTH, RING_BITS), np.frombuffer(upload, np.uint8)
    wanted = [np.zeros(size, np.uint8) for _ in masks]
    for out, used in zip(wanted, masks, strict=True):
        pack(_written(used), RING_BITS, out)
    found = sent[-VECTORS * (size + TAG_BYTES) :].reshape(VECTORS, size + TAG_BYTES)[:, :size]
    return float((found != np.stack(wanted)).mean())
