"""Contexts and keys: whatever differs in their inputs makes them differ."""

from __future__ import annotations

from itertools import product

from replay import record
from rounds import entropy, identity, make_rig

from privfm.secagg import Stage, VectorSpec
from privfm.secagg.exchange import derive, exchange, exchanges, public_key
from privfm.secagg.framing import Signed
from privfm.secagg.keys import (
    channel_key,
    cohort_context,
    pair_masks,
    seed_commitment,
    self_masks,
    survivors_context,
    tag_key,
    transcript_hash,
)
from privfm.secagg.messages import Agreement, Dealing, KeyPackage, Seed, Share

VECTORS = [VectorSpec("a", 9, 1.0, levels=3), VectorSpec("b", 9, 1.0, levels=3), VectorSpec("c", 8, 1.0, levels=3)]
CONTEXTS = (bytes(32), entropy("context"))


def distinct(values: list[bytes]) -> bool:
    return len(set(values)) == len(values)


def test_no_two_uses_share_a_key() -> None:
    """Also for two vectors of one length, or the difference of the two would lie open."""
    shared = exchange(entropy("a"), public_key(entropy("b")))
    found = []
    for context in CONTEXTS:
        for low, high in (("a", "b"), ("a", "c")):
            found += [mask.key for mask in pair_masks(shared, context, low, high, VECTORS)]
        for name in ("a", "b"):
            found += [mask.key for mask in self_masks(shared, context, name, VECTORS)]
            found.append(tag_key(shared, context, name))
        found += [channel_key(shared, context, sender, receiver) for sender, receiver in product("ab", repeat=2)]
    assert distinct(found)


def test_a_longer_vector_has_another_mask() -> None:
    longer = [VectorSpec("a", 10, 1.0, levels=3)]
    assert (
        pair_masks(bytes(32), bytes(32), "a", "b", longer)[0].key
        != pair_masks(bytes(32), bytes(32), "a", "b", VECTORS[:1])[0].key
    )
    assert self_masks(bytes(32), bytes(32), "a", longer) != self_masks(bytes(32), bytes(32), "a", VECTORS[:1])


def test_both_ends_of_a_pair_have_one_mask_of_opposite_signs() -> None:
    shared = exchange(entropy("a"), public_key(entropy("b")))
    assert shared == exchange(entropy("b"), public_key(entropy("a")))
    left, right = (pair_masks(shared, bytes(32), own, peer, VECTORS) for own, peer in (("a", "b"), ("b", "a")))
    assert [mask.negated() for mask in left] == right


def test_many_exchanges_are_those_one_by_one() -> None:
    peers = [public_key(entropy(index)) for index in range(5)]
    assert exchanges(entropy("a"), peers) == [exchange(entropy("a"), peer) for peer in peers]


def test_names_and_numbers_cannot_run_together() -> None:
    keys = [
        derive(b"k", bytes(32), "label", *fields)
        for fields in ((), ("ab", "c"), ("a", "bc"), ("abc",), (1,), (1, 1), (257,))
    ]
    assert distinct(keys)
    assert derive(b"k", bytes(32), "label", "x") != derive(b"k", bytes(32), "labe", "lx")


def test_contexts_cover_what_they_are_over() -> None:
    story = record(make_rig(5, length=3))
    packages = [Signed.decode(KeyPackage, data) for data in story.sent[Stage.ADVERTISE].values()]
    context0 = story.rig.spec.context0
    resigned = Signed(packages[0].body, packages[1].signature)
    contexts = [
        cohort_context(context0, packages),
        cohort_context(entropy("x"), packages),
        cohort_context(context0, packages[1:]),
        cohort_context(context0, packages[::-1]),
        cohort_context(context0, [resigned, *packages[1:]]),
    ]
    assert distinct(contexts)
    survivors = [
        survivors_context(context, names) for context in contexts[:2] for names in (("a", "b"), ("a",), ("ab",), ())
    ]
    assert distinct(survivors)


def test_the_transcript_covers_dealings_and_agreements_and_keeps_them_apart() -> None:
    dealings = [Signed.by(identity(name), bytes(32), Dealing(name, bytes(32), ())) for name in "ab"]
    agreements = [Signed.by(identity(name), bytes(32), Agreement(name)) for name in "ab"]
    found = [
        transcript_hash(bytes(32), dealings, agreements),
        transcript_hash(entropy("x"), dealings, agreements),
        transcript_hash(bytes(32), dealings[1:], agreements),
        transcript_hash(bytes(32), dealings, agreements[1:]),
        transcript_hash(bytes(32), dealings, []),
        transcript_hash(bytes(32), [], agreements),
    ]
    assert distinct(found)


def test_commitments_cover_every_field() -> None:
    share, other = Share(bytes(33), bytes(32)), Share(bytes(33), entropy("salt"))
    moved = Share(bytes(32) + b"\1", bytes(32))
    found = [item.commitment(bytes(32), "a", "b", Seed.SELF_MASK) for item in (share, other, moved)]
    found += [
        share.commitment(entropy("x"), "a", "b", Seed.SELF_MASK),
        share.commitment(bytes(32), "b", "a", Seed.SELF_MASK),
        share.commitment(bytes(32), "a", "c", Seed.SELF_MASK),
        share.commitment(bytes(32), "a", "b", Seed.MASK_KEY),
        seed_commitment(bytes(32), "a", bytes(32)),
        seed_commitment(bytes(32), "b", bytes(32)),
        seed_commitment(entropy("x"), "a", bytes(32)),
        seed_commitment(bytes(32), "a", entropy("x")),
    ]
    assert distinct(found)
