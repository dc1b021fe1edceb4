"""Holes found in other implementations of secure aggregation, each shown to be absent here."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from knowledge import opened
from replay import record
from rounds import Coordinator, entropy, hospitals_of, make_rig, play

from privfm.secagg import Stage, VectorSpec, run_round
from privfm.secagg.chunks import CHUNK
from privfm.secagg.exchange import exchange, public_key
from privfm.secagg.keys import pair_masks, self_masks
from privfm.secagg.masks import Mask, masked_pieces
from privfm.secagg.messages import Seed
from privfm.secagg.upload import masked_upload

VECTOR = VectorSpec("v", 64, 1.0, levels=100)


def words_of(key: bytes, length: int = 64) -> list[int]:
    _, words = next(masked_pieces(np.zeros(length, np.uint32), [Mask(key, 1)], 0, length))
    return [int(word) for word in words]


def test_masks_come_from_256_bits_not_32() -> None:
    """An expansion from 32 seed bits, or by a generator that is not cryptographic, can be searched or rewound."""
    secret = exchange(entropy("a"), public_key(entropy("b")))
    (mask,) = pair_masks(secret, bytes(32), "a", "b", [VECTOR])
    assert len(mask.key) == 32
    for bit in (0, 31, 32, 128, 255):
        key = bytearray(mask.key)
        key[bit // 8] ^= 1 << bit % 8
        same = sum(a == b for a, b in zip(words_of(bytes(key)), words_of(mask.key), strict=True))
        assert same <= 1
    for seed in (mask.key[:4], mask.key[-4:]):
        generator = np.random.RandomState(int.from_bytes(seed, "little"))
        assert generator.randint(0, 2**32, 64, np.uint32).tolist() != words_of(mask.key)


def test_no_message_can_ask_for_both_seeds_of_a_hospital() -> None:
    """Two lists, of those who stayed and those who left, can overlap. Here there is one, and its complement."""
    story = record(make_rig(5), lost={Stage.MASK: "h04"})
    for name in story.outcome.survivors:
        state = story.before[Stage.UNMASK][name]
        assert set(state.survivors) == set(story.outcome.survivors)
    rig = make_rig(5)

    class LosesOne(Coordinator):
        def survivors(self, uploads: dict[str, bytes]) -> dict[str, bytes]:
            return super().survivors({name: data for name, data in uploads.items() if name != "h04"})

    counts = opened(play(LosesOne(rig), hospitals_of(rig)))
    assert {dealer for dealer, _ in counts} == set(rig.names)
    assert len(counts) == len(rig.names)


@pytest.mark.parametrize("stage", list(Stage))
def test_a_drop_out_at_the_first_stage_is_like_any_other(stage: Stage) -> None:
    rig = make_rig(5)
    outcome = run_round(rig.spec, rig.parties({"h02": stage}), entropy=entropy("coordinator"))
    np.testing.assert_array_equal(outcome.sums[0], rig.plain_sum(outcome.survivors))


def test_the_coordinator_rebuilds_no_private_key_of_a_survivor() -> None:
    rig = make_rig(5)
    counts = opened(play(Coordinator(rig), hospitals_of(rig)))
    assert all(counts[name, Seed.MASK_KEY] == 0 for name in rig.names)


@pytest.mark.parametrize("length", [1, 3, 5, CHUNK - 1, CHUNK + 1, 2 * CHUNK + 7])
@pytest.mark.parametrize("ring_bits", [16, 24, 32])
def test_every_entry_is_masked_also_past_the_last_whole_block(length: int, ring_bits: int) -> None:
    """Padding a vector with zeros leaves mask bytes in clear or entries without mask."""
    spec = VectorSpec("v", length, 1.0, levels=1, ring_bits=ring_bits)
    uploads = []
    for attempt in range(4):
        mask = self_masks(entropy(attempt), bytes(32), "h", [spec])
        upload = masked_upload([spec], [np.zeros(length, np.int32)], [mask], bytes(32), 1)
        uploads.append(np.frombuffer(upload, np.uint8)[2:].reshape(1, -1))
    rows = np.concatenate(uploads)
    constant = (rows == rows[0]).all(axis=0).mean()
    assert constant < 0.2
    tail = rows[:, -16 - 2 :][:, :2]
    assert len({bytes(row) for row in tail}) > 1


def test_nothing_but_the_upload_depends_on_the_vector() -> None:
    """No weight, count or norm travels beside it, and its size is a constant of the round."""
    rig = make_rig(5)
    other = replace(rig, levels={name: [np.zeros_like(v) for v in vectors] for name, vectors in rig.levels.items()})
    one, two = record(rig), record(other)
    for stage in Stage:
        for name in rig.names:
            same = one.sent[stage][name] == two.sent[stage][name]
            assert same == (stage is not Stage.MASK)
            assert len(one.sent[stage][name]) == len(two.sent[stage][name])


def test_importing_it_starts_no_framework() -> None:
    code = "import sys, privfm.secagg; print(sorted({'torch', 'scipy', 'flwr'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
