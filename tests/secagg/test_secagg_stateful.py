"""Hypothesis plays the network: messages arrive late, twice, in any order or never, and stages close when it likes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rounds import Hospital, Mail, Rig, entropy, make_rig

from privfm.errors import ProtocolError
from privfm.secagg import COORDINATOR, ClientPolicy, Stage, server

STAGES = tuple(Stage)
COUNT = 7


class Network(RuleBasedStateMachine):
    """Answers wait in a bag. The coordinator takes what arrived by the time a stage closes, and nothing later."""

    def __init__(self) -> None:
        super().__init__()
        self.rig: Rig = make_rig(COUNT, length=5, policy=ClientPolicy(2, 2))
        self.hospitals = {name: Hospital(self.rig, name) for name in self.rig.names}
        self.asked: Mail = dict.fromkeys(self.rig.names, b"")
        self.waiting: list[tuple[Stage, str, bytes]] = []
        self.arrived: Mail = {}
        self.stage = 0
        self.state: Any = None
        self.outcome: server.Outcome | None = None
        self.over = False
        self.uploaded: set[str] = set()

    def running(self) -> bool:
        return not self.over

    @precondition(running)
    @rule(data=st.data())
    def a_hospital_answers(self, data: st.DataObject) -> None:
        due = sorted(name for name in self.asked if self.hospitals[name].client.stage is STAGES[self.stage])
        if due:
            name = data.draw(st.sampled_from(due))
            self.waiting.append((STAGES[self.stage], name, self._answer(name)))

    def _answer(self, name: str) -> bytes:
        hospital, incoming = self.hospitals[name], self.asked[name]
        steps = (lambda _: hospital.advertise(), hospital.share, hospital.mask, hospital.agree, hospital.unmask)
        return steps[self.stage](incoming)

    @precondition(lambda self: self.running() and self.waiting)
    @rule(data=st.data(), keep=st.booleans())
    def a_message_arrives(self, data: st.DataObject, keep: bool) -> None:
        """In any order; kept in the bag, it will arrive again."""
        index = data.draw(st.integers(0, len(self.waiting) - 1))
        stage, name, message = self.waiting[index] if keep else self.waiting.pop(index)
        if stage is STAGES[self.stage]:
            self.arrived[name] = message

    @precondition(running)
    @rule(data=st.data())
    def most_answer_in_time_and_the_stage_closes(self, data: st.DataObject) -> None:
        due = [name for name in self.asked if self.hospitals[name].client.stage is STAGES[self.stage]]
        late = data.draw(st.sampled_from(["nobody"] * 9 + due))
        for name in data.draw(st.permutations(due)):
            message = self._answer(name)
            if name == late:
                self.waiting.append((STAGES[self.stage], name, message))
            else:
                self.arrived[name] = message
        if self.enough():
            self._next_stage()

    @rule(data=st.data())
    def somebody_is_asked_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        if self.hospitals[name].client.stage is not STAGES[self.stage]:
            with pytest.raises(ProtocolError, match="asked to") as caught:
                self._answer(name)
            assert caught.value.blamed == (COORDINATOR,)

    def enough(self) -> bool:
        return len(self.arrived) >= self.rig.spec.threshold

    @precondition(lambda self: self.running() and self.enough())
    @rule()
    def the_stage_closes(self) -> None:
        self._next_stage()

    def _next_stage(self) -> None:
        result = self._close()
        if self.stage == 2:
            self.uploaded = set(self.arrived)
        if self.stage == 4:
            self.outcome, self.over = result, True
            return
        self.state, self.asked = result
        self.stage, self.arrived = self.stage + 1, {}

    @precondition(lambda self: self.running() and not self.enough())
    @rule(patience=st.integers(0, 30))
    def the_stage_closes_too_early(self, patience: int) -> None:
        if patience == 7:
            with pytest.raises(ProtocolError, match="answered, need 5") as caught:
                self._close()
            assert caught.value.blamed == ()
            self.over = True

    def _close(self) -> Any:
        if self.stage == 0:
            return server.advertise(self.rig.spec, self.arrived, entropy=entropy("coordinator"))
        steps: tuple[Any, ...] = (server.share, server.mask, server.agree, server.unmask)
        return steps[self.stage - 1](self.state, self.arrived)

    @invariant()
    def a_sum_is_exact_and_of_those_who_were_added(self) -> None:
        if self.outcome is not None:
            assert set(self.outcome.survivors) == self.uploaded
            assert self.outcome.faults == ()
            np.testing.assert_array_equal(self.outcome.sums[0], self.rig.plain_sum(self.outcome.survivors))


TestNetwork = Network.TestCase
TestNetwork.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
