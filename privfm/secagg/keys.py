"""What hospital and coordinator both derive: contexts, mask keys, channel keys, tag keys, and the transcript."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from privfm.secagg.encoding import Writer, digest
from privfm.secagg.exchange import derive
from privfm.secagg.framing import Signed
from privfm.secagg.masks import Mask
from privfm.secagg.messages import Agreement, Dealing, KeyPackage
from privfm.secagg.spec import VectorSpec

__all__ = [
    "channel_key",
    "cohort_context",
    "key_clashes",
    "pair_masks",
    "seed_commitment",
    "self_masks",
    "survivors_context",
    "tag_key",
    "transcript_hash",
]


def cohort_context(context0: bytes, packages: Iterable[Signed[KeyPackage]]) -> bytes:
    """context1: the round, and the key packages of its cohort, ascending by sender."""
    return digest("context1", context0, *(package.encode() for package in packages))


def key_clashes(packages: Mapping[str, KeyPackage]) -> list[tuple[str, ...]]:
    """Who shows a key that stands elsewhere in the cohort too: each group once, a name alone for its own two keys."""
    owners: dict[bytes, list[str]] = {}
    for name, package in packages.items():
        for key in (package.channel_key, package.mask_key):
            owners.setdefault(key, []).append(name)
    return [tuple(dict.fromkeys(names)) for names in owners.values() if len(names) > 1]


def survivors_context(context1: bytes, survivors: Sequence[str]) -> bytes:
    """context2: the cohort, and whose vectors are in the sum, ascending."""
    return digest("context2", context1, bytes(Writer().sequence(survivors, Writer.name)))


def channel_key(shared: bytes, context1: bytes, sender: str, receiver: str) -> bytes:
    """For the one box from a dealer to a holder."""
    return derive(shared, context1, "channel", sender, receiver)


def tag_key(shared: bytes, context1: bytes, sender: str) -> bytes:
    """For the tags of one upload."""
    return derive(shared, context1, "upload", sender)


def self_masks(seed: bytes, context1: bytes, name: str, vectors: Sequence[VectorSpec]) -> list[Mask]:
    """What hides a hospital's vectors from everybody until its self-mask seed is recovered: a mask for each."""
    return [
        Mask(derive(seed, context1, "self-mask", name, index, vector.length), 1) for index, vector in enumerate(vectors)
    ]


def pair_masks(shared: bytes, context1: bytes, own: str, peer: str, vectors: Sequence[VectorSpec]) -> list[Mask]:
    """What `own` adds and `peer` takes away again: a mask for each vector, of opposite signs at the two."""
    low, high = sorted((own, peer))
    return [
        Mask(derive(shared, context1, "pair-mask", low, high, index, vector.length), 1 if own == low else -1)
        for index, vector in enumerate(vectors)
    ]


def seed_commitment(context1: bytes, dealer: str, seed: bytes) -> bytes:
    """32 bytes by which a recovered self-mask seed is known again. The seed is uniform, so it needs no salt."""
    return digest("seed", context1, dealer.encode("utf-8"), seed)


def transcript_hash(
    context2: bytes, dealings: Iterable[Signed[Dealing]], agreements: Iterable[Signed[Agreement]]
) -> bytes:
    """32 bytes over the round's parameters and every message that its parties must agree on.

    Key packages and survivors are in context2; dealings and agreements ascend by sender. Uploads are not in it: no
    hospital sees another's.
    """
    dealt = digest("dealings", *(dealing.encode() for dealing in dealings))
    agreed = digest("agreements", *(agreement.encode() for agreement in agreements))
    return digest("transcript", context2, dealt, agreed)
