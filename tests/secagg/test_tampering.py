"""Messages of every type, cut short, extended or with one bit turned over: caught, and blamed on the right party."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from replay import Recording, record
from rounds import make_rig

from privfm.errors import ProtocolError
from privfm.secagg import COORDINATOR, Stage

VICTIM = "h01"
FLIPS = 40
# In a cohort the coordinator's own key follows version and type. Nobody signs for it; with another one in its place
# a hospital's upload does not fit, which the coordinator notices (`test_a_wrong_coordinator_key_spoils_the_upload`).
COORDINATOR_KEY = range(2 * 8, 34 * 8)


@pytest.fixture(scope="module")
def story() -> Recording:
    return record(make_rig(5, length=7, vectors=2))


def mutations(message: bytes, skip: range = range(0)) -> Iterator[bytes]:
    rng = np.random.default_rng(len(message))
    yield b""
    yield message + b"\0"
    yield message + message
    for length in {1, 2, len(message) // 2, len(message) - 1}:
        yield message[:length]
    bits = {*range(48), *rng.integers(0, 8 * len(message), FLIPS).tolist()} - set(skip)
    for bit in sorted(bits):
        changed = bytearray(message)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("stage", list(Stage))
def test_what_a_hospital_sends(story: Recording, stage: Stage) -> None:
    messages = story.sent[stage]
    for changed in mutations(messages[VICTIM]):
        result = story.coordinator_step(stage, {**messages, VICTIM: changed})
        if stage is Stage.UNMASK:
            assert result.faults[0].blamed == (VICTIM,)
            np.testing.assert_array_equal(result.sums[0], story.rig.plain_sum(story.rig.names))
        else:
            state, mail = result
            assert [fault.blamed for fault in state.faults] == [(VICTIM,)]
            assert VICTIM not in mail


@pytest.mark.parametrize("stage", list(Stage)[1:])
def test_what_the_coordinator_sends(story: Recording, stage: Stage) -> None:
    skip = COORDINATOR_KEY if stage is Stage.SHARE else range(0)
    for changed in mutations(story.incoming[stage][VICTIM], skip):
        with pytest.raises(ProtocolError) as caught:
            story.hospital_step(stage, VICTIM, changed)
        assert caught.value.blamed == (COORDINATOR,)


def test_a_wrong_coordinator_key_spoils_the_upload(story: Recording) -> None:
    cohort = bytearray(story.incoming[Stage.SHARE][VICTIM])
    cohort[2] ^= 1
    misled, deal = story.hospital_step(Stage.SHARE, VICTIM, bytes(cohort))
    assert deal == story.sent[Stage.SHARE][VICTIM]
    changed = Recording(story.rig, {Stage.MASK: {VICTIM: misled}})
    _, upload = changed.hospital_step(Stage.MASK, VICTIM, story.incoming[Stage.MASK][VICTIM])
    state, _ = story.coordinator_step(Stage.MASK, {**story.sent[Stage.MASK], VICTIM: upload})
    assert [fault.blamed for fault in state.faults] == [(VICTIM,)]


@pytest.mark.parametrize("stage", list(Stage))
def test_messages_of_other_types_and_parties(story: Recording, stage: Stage) -> None:
    for other in Stage:
        for name in ("h00", VICTIM):
            if (other, name) != (stage, VICTIM):
                changed = {**story.sent[stage], VICTIM: story.sent[other][name]}
                result = story.coordinator_step(stage, changed)
                faults = result.faults if stage is Stage.UNMASK else result[0].faults
                assert [fault.blamed for fault in faults] == [(VICTIM,)]
