"""Five hospitals, every way to fall silent over the five stages: 6^5 patterns, walked as a tree of frozen states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest
from rounds import Rig, entropy, identity, make_rig, mark_of

from privfm.errors import ProtocolError
from privfm.secagg import ClientPolicy, client, server

Mail = Mapping[str, bytes]
COUNT = 5


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))


class Tree:
    """Walks every subset that stays at each stage; counts the patterns of leaving that end in a sum."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.threshold = rig.spec.threshold
        self.sums = 0
        self.aborts = 0

    def walk(self) -> None:
        ready = {name: client.Ready(self.rig.spec, identity(name), self.rig.policy) for name in self.rig.names}
        self._ask(0, ready, dict.fromkeys(self.rig.names, b""), None)

    def _answer(self, stage: int, name: str, state: Any, incoming: bytes) -> tuple[Any, bytes]:
        if stage == 0:
            return client.advertise(state, mark_of(name), answered=None, entropy=entropy(name))
        if stage == 1:
            return client.share(state, incoming, seen={})
        if stage == 2:
            masked, upload = client.mask(state, incoming, lambda: self.rig.levels[name])
            return masked, bytes(upload)
        return client.agree(state, incoming) if stage == 3 else client.unmask(state, incoming)

    def _collect(self, stage: int, state: Any, messages: Mail) -> Any:
        if stage == 0:
            return server.advertise(self.rig.spec, messages, entropy=entropy("coordinator"))
        steps: Sequence[Any] = (server.share, server.mask, server.agree, server.unmask)
        return steps[stage - 1](state, messages)

    def _ask(self, stage: int, states: Mapping[str, Any], mail: Mail, coordinator: Any) -> None:
        answers = {name: self._answer(stage, name, states[name], mail[name]) for name in mail}
        for present in subsets(tuple(mail)):
            messages = {name: answers[name][1] for name in present}
            if len(present) < self.threshold:
                self._check_abort(stage, coordinator, messages)
            elif stage == 4:
                self._check_sum(coordinator, messages)
            else:
                after, outgoing = self._collect(stage, coordinator, messages)
                assert tuple(outgoing) == present
                self._ask(stage + 1, {name: answers[name][0] for name in present}, outgoing, after)

    def _check_abort(self, stage: int, coordinator: Any, messages: Mail) -> None:
        with pytest.raises(ProtocolError, match=f"{len(messages)} of {COUNT} answered, need {self.threshold}") as error:
            self._collect(stage, coordinator, messages)
        assert error.value.blamed == ()
        # Whoever is still there may leave, or not, at each later stage: that many patterns end here.
        self.aborts += (5 - stage) ** len(messages)

    def _check_sum(self, coordinator: server.Agreed, messages: Mail) -> None:
        outcome = server.unmask(coordinator, messages)
        assert outcome.faults == ()
        np.testing.assert_array_equal(outcome.sums[0], self.rig.plain_sum(outcome.survivors))
        self.sums += 1


def test_a_sum_comes_out_if_and_only_if_every_stage_keeps_the_threshold() -> None:
    tree = Tree(make_rig(COUNT, length=6, policy=ClientPolicy(2, 2)))
    tree.walk()
    # Nobody leaves, or one of five at one of five stages.
    assert tree.sums == 1 + 5 * 5
    assert tree.sums + tree.aborts == 6**COUNT
