"""Whole rounds: the sum is exact if and only if every stage keeps the threshold."""

from __future__ import annotations

import numpy as np
import pytest
from rounds import Coordinator, Rig, entropy, hospitals_of, make_rig, play

from privfm.errors import ProtocolError
from privfm.secagg import ClientPolicy, Stage, run_round, smallest_threshold

SECRET = entropy("coordinator")


@pytest.mark.parametrize("ring_bits", [16, 24, 32])
@pytest.mark.parametrize("count", [3, 5, 7, 10])
def test_the_sum_of_everybody_is_exact(count: int, ring_bits: int) -> None:
    rig = make_rig(count, ring_bits=ring_bits, vectors=2)
    outcome = run_round(rig.spec, rig.parties(), entropy=SECRET)
    assert outcome.survivors == rig.names
    assert outcome.faults == ()
    for vector in range(2):
        np.testing.assert_array_equal(outcome.sums[vector], rig.plain_sum(rig.names, vector))


def test_extreme_levels_do_not_wrap() -> None:
    rig = make_rig(5, length=3, ring_bits=16)
    top = rig.spec.vectors[0].levels
    for sign in (1, -1):
        for name in rig.names:
            rig.levels[name][0][:] = sign * top
        outcome = run_round(rig.spec, rig.parties(), entropy=SECRET)
        assert outcome.sums[0].tolist() == [sign * 5 * top] * 3


def check_pattern(rig: Rig, pattern: tuple[int, ...]) -> None:
    """A hospital at place i leaves at stage pattern[i], counted from 0; 5 stays."""
    leaves = {name: list(Stage)[stage] for name, stage in zip(rig.names, pattern, strict=True) if stage < 5}
    if any(sum(leaving > stage for leaving in pattern) < rig.spec.threshold for stage in range(5)):
        with pytest.raises(ProtocolError, match="answered, need") as caught:
            run_round(rig.spec, rig.parties(leaves), entropy=SECRET)
        assert caught.value.blamed == ()
        return
    outcome = run_round(rig.spec, rig.parties(leaves), entropy=SECRET)
    assert outcome.survivors == tuple(name for name, stage in zip(rig.names, pattern, strict=True) if stage > 2)
    np.testing.assert_array_equal(outcome.sums[0], rig.plain_sum(outcome.survivors))


def test_drop_outs_up_to_the_threshold_and_one_beyond_at_each_stage() -> None:
    rig = make_rig(7, length=4, policy=ClientPolicy(2, 2))
    for stage in range(5):
        for gone in (2, 3):
            check_pattern(rig, (stage,) * gone + (5,) * (7 - gone))


def test_every_hospital_and_the_coordinator_end_with_one_transcript() -> None:
    rig = make_rig()
    hospitals = hospitals_of(rig)
    story = play(Coordinator(rig), hospitals)
    assert story.outcome is not None
    assert {h.client.finished.transcript for h in hospitals.values()} == {story.outcome.transcript}
    assert {h.client.finished.survivors for h in hospitals.values()} == {rig.names}


@pytest.mark.parametrize("change", [{"round": 4}, {"attempt": 1}, {"model_hash": entropy("other")}, {"threshold": 5}])
def test_the_transcript_covers_every_parameter(change: dict[str, object]) -> None:
    rig = make_rig()
    first = run_round(rig.spec, rig.parties(), entropy=SECRET)
    other = rig.at(**change)
    assert run_round(other.spec, other.parties(), entropy=SECRET).transcript != first.transcript


def test_threads_change_nothing() -> None:
    rig = make_rig(length=200_000)
    one, two = (run_round(rig.spec, rig.parties(), entropy=SECRET, threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one.sums[0], two.sums[0])
    assert one.transcript == two.transcript


def test_default_threshold_tolerates_what_the_table_says() -> None:
    assert {n: n - smallest_threshold(n) for n in (3, 5, 7, 10)} == {3: 0, 5: 1, 7: 2, 10: 3}
