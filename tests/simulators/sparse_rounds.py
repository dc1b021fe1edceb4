"""Rounds on a sparse graph to attack: an honest coordinator's six steps, each of which a hostile one overrides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rounds import Mail, Rig, entropy, identity, make_rig, mark_of

from privfm.errors import ProtocolError
from privfm.secagg import ClientPolicy, LedgerMark
from privfm.secagg.client import Ready
from privfm.secagg.server import Outcome
from privfm.secagg.sparse import choose_neighbours, client, server
from privfm.secagg.stages import SparseStage

STAGES = tuple(SparseStage)


def make_sparse_rig(count: int = 12, *, corrupt: int = 1, dropped: int = 1, length: int = 5) -> Rig:
    neighbours = choose_neighbours(count, max_corrupt=corrupt, max_dropped=dropped)
    policy, threshold = ClientPolicy(corrupt, 2), count - dropped
    return make_rig(count, length=length, policy=policy, threshold=threshold, neighbours=neighbours)


@dataclass
class SparseStory:
    """What happened: everything sent, what each hospital refused, and how the coordinator ended."""

    states: dict[str, Any]
    sent: dict[SparseStage, Mail] = field(default_factory=dict)
    mail: dict[SparseStage, Mail] = field(default_factory=dict)
    before: dict[SparseStage, dict[str, Any]] = field(default_factory=dict)
    refusals: dict[str, ProtocolError] = field(default_factory=dict)
    outcome: Outcome | None = None
    failure: ProtocolError | None = None


class SparseCoordinator:
    """An honest coordinator."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.states: dict[SparseStage, Any] = {}

    def collect(self, stage: SparseStage, messages: Mail) -> Any:
        if stage is SparseStage.ADVERTISE:
            return server.advertise(self.rig.spec, messages, entropy=entropy("coordinator"))
        step: Callable[..., Any] = getattr(server, stage.value)
        return step(self.states[stage], messages)

    def reply(self, stage: SparseStage, messages: Mail) -> Mail:
        """What hospitals are sent after a stage."""
        self.states[STAGES[STAGES.index(stage) + 1]], mail = self.collect(stage, messages)
        return dict(mail)

    def finish(self, messages: Mail) -> Outcome | None:
        state = self.states.get(SparseStage.UNMASK)
        return server.unmask(state, messages) if state is not None else None


def answer(
    rig: Rig, stage: SparseStage, name: str, state: Any, incoming: bytes, seen: dict[str, LedgerMark] | None = None
) -> tuple[Any, bytes]:
    """What an honest hospital answers."""
    if stage is SparseStage.ADVERTISE:
        return client.advertise(state, mark_of(name), answered=None, entropy=entropy("round", name, rig.spec.number))
    if stage is SparseStage.SHARE:
        return client.share(state, incoming, seen=seen or {})
    if stage is SparseStage.MASK:
        masked, upload = client.mask(state, incoming, lambda: rig.levels[name])
        return masked, bytes(upload)
    step: Callable[..., Any] = getattr(client, stage.value)
    result: tuple[Any, bytes] = step(state, incoming)
    return result


def play_sparse(
    coordinator: SparseCoordinator, *, leaves: dict[str, SparseStage] | None = None, edit: Any = None
) -> SparseStory:
    """A round. `edit(stage, name, sent)` stands for a hospital that lies."""
    rig = coordinator.rig
    story = SparseStory({name: Ready(rig.spec, identity(name), rig.policy) for name in rig.names})
    mail: Mail = dict.fromkeys(rig.names, b"")
    for stage in STAGES:
        story.mail[stage], story.before[stage], story.sent[stage] = mail, dict(story.states), {}
        for name, incoming in mail.items():
            gone = leaves is not None and name in leaves and STAGES.index(leaves[name]) <= STAGES.index(stage)
            if gone or name in story.refusals:
                continue
            try:
                story.states[name], sent = answer(rig, stage, name, story.states[name], incoming)
                story.sent[stage][name] = edit(stage, name, sent) if edit else sent
            except ProtocolError as error:
                story.refusals[name] = error
        try:
            if stage is SparseStage.UNMASK:
                story.outcome = coordinator.finish(story.sent[stage])
            else:
                mail = coordinator.reply(stage, story.sent[stage])
        except ProtocolError as error:
            story.failure = error
            break
    return story
