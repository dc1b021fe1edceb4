"""Rounds to attack: a rig of hospitals with repeatable entropy, and a stage where coordinator and hospitals act."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfm.errors import ProtocolError
from privfm.secagg import (
    Client,
    ClientPolicy,
    Identity,
    LedgerMark,
    Neighbours,
    Party,
    Roster,
    RoundSpec,
    Stage,
    VectorSpec,
    server,
    smallest_threshold,
)

Mail = dict[str, bytes]


def entropy(*label: object) -> bytes:
    """32 bytes that stand for the operating system's in tests."""
    return hashlib.sha256(repr(label).encode()).digest()


@cache
def identity(name: str) -> Identity:
    return Identity.generate(name, entropy("identity", name))


def names_of(count: int) -> tuple[str, ...]:
    width = max(2, len(str(count - 1)))
    return tuple(f"h{index:0{width}d}" for index in range(count))


@cache
def roster_of(count: int) -> Roster:
    """The cohort, and one more member who is not invited."""
    return Roster.first("test", {name: identity(name).public for name in (*names_of(count), "uninvited")})


def mark_of(name: str) -> LedgerMark:
    return LedgerMark(7, entropy("ledger", name))


@dataclass(frozen=True)
class Rig:
    """A round and what each hospital brings to it."""

    spec: RoundSpec
    levels: Mapping[str, list[NDArray[np.int32]]]
    policy: ClientPolicy

    @property
    def names(self) -> tuple[str, ...]:
        return self.spec.cohort

    def client(self, name: str) -> Client:
        return Client(self.spec, identity(name), self.policy)

    def party(self, name: str, leaves: Stage | None = None) -> Party:
        secret = entropy("round", name, self.spec.number)
        return Party(identity(name), self.policy, mark_of(name), lambda: self.levels[name], secret, leaves=leaves)

    def parties(self, leaves: Mapping[str, Stage] | None = None) -> dict[str, Party]:
        return {name: self.party(name, (leaves or {}).get(name)) for name in self.names}

    def plain_sum(self, survivors: tuple[str, ...], vector: int = 0) -> NDArray[np.int64]:
        total = np.zeros(self.spec.vectors[vector].length, np.int64)
        for name in survivors:
            total += self.levels[name][vector]
        return total

    def at(self, **changes: Any) -> Rig:
        return replace(self, spec=replace(self.spec, **changes))


def make_rig(
    count: int = 5,
    *,
    length: int = 40,
    threshold: int | None = None,
    ring_bits: int = 24,
    vectors: int = 1,
    policy: ClientPolicy | None = None,
    neighbours: Neighbours | None = None,
) -> Rig:
    threshold = threshold or smallest_threshold(count)
    specs = tuple(
        VectorSpec.fit(f"v{index}", length + index, 1.0, clients=count, ring_bits=ring_bits) for index in range(vectors)
    )
    spec = RoundSpec(
        run=b"a run for tests.",
        round=3,
        attempt=0,
        plan_hash=entropy("plan"),
        roster=roster_of(count),
        model_hash=entropy("model"),
        vectors=specs,
        cohort=names_of(count),
        threshold=threshold,
        neighbours=neighbours,
    )
    rng = np.random.default_rng(count)
    levels = {
        name: [rng.integers(-v.levels, v.levels + 1, v.length, dtype=np.int32) for v in specs] for name in spec.cohort
    }
    return Rig(spec, levels, policy or ClientPolicy(max_corrupt=1, min_cohort=2))


class Coordinator:
    """An honest coordinator. A hostile one overrides what it sends."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.secret = entropy("coordinator")
        self.agreed: server.Agreed | None = None

    def cohorts(self, packages: Mail) -> Mail:
        self.advertised, mail = server.advertise(self.rig.spec, packages, entropy=self.secret)
        return mail

    def deliveries(self, deals: Mail) -> Mail:
        self.shared, mail = server.share(self.advertised, deals)
        return mail

    def survivors(self, uploads: Mail) -> Mail:
        self.masked, mail = server.mask(self.shared, uploads)
        return mail

    def answers(self, agreements: Mail) -> Mail:
        self.agreed, mail = server.agree(self.masked, agreements)
        return mail

    def outcome(self, reveals: Mail) -> server.Outcome | None:
        """The sum; none for a coordinator that left the protocol's path."""
        return server.unmask(self.agreed, reveals) if self.agreed else None


class Hospital:
    """An honest hospital. A hostile one overrides what it sends."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig, self.name = rig, name
        self.client = rig.client(name)
        self.seen: dict[str, LedgerMark] = {}

    def advertise(self) -> bytes:
        secret = entropy("round", self.name, self.rig.spec.number)
        return self.client.advertise(mark_of(self.name), answered=None, entropy=secret)

    def share(self, incoming: bytes) -> bytes:
        return self.client.share(incoming, seen=self.seen)

    def mask(self, incoming: bytes) -> bytes:
        return bytes(self.client.mask(incoming, lambda: self.rig.levels[self.name]))

    def agree(self, incoming: bytes) -> bytes:
        return self.client.agree(incoming)

    def unmask(self, incoming: bytes) -> bytes:
        return self.client.unmask(incoming)


@dataclass
class Story:
    """What happened: everything sent, what each hospital refused, and how the coordinator ended."""

    sent: dict[Stage, Mail] = field(default_factory=dict)
    refusals: dict[str, ProtocolError] = field(default_factory=dict)
    outcome: server.Outcome | None = None
    failure: ProtocolError | None = None


def play(coordinator: Coordinator, hospitals: Mapping[str, Hospital]) -> Story:
    """A round in which a hospital that refuses falls silent, and a coordinator that gives up ends it."""
    story = Story()

    def ask(stage: Stage, step: Callable[[Hospital, bytes], bytes], mail: Mail) -> Mail:
        sent = {}
        for name, incoming in mail.items():
            try:
                sent[name] = step(hospitals[name], incoming)
            except ProtocolError as error:
                story.refusals[name] = error
        story.sent[stage] = sent
        return sent

    try:
        packages = ask(Stage.ADVERTISE, lambda h, _: h.advertise(), dict.fromkeys(hospitals, b""))
        deals = ask(Stage.SHARE, lambda h, m: h.share(m), coordinator.cohorts(packages))
        uploads = ask(Stage.MASK, lambda h, m: h.mask(m), coordinator.deliveries(deals))
        agreements = ask(Stage.AGREE, lambda h, m: h.agree(m), coordinator.survivors(uploads))
        reveals = ask(Stage.UNMASK, lambda h, m: h.unmask(m), coordinator.answers(agreements))
        story.outcome = coordinator.outcome(reveals)
    except ProtocolError as error:
        story.failure = error
    return story


def hospitals_of(rig: Rig, **hostile: Hospital) -> dict[str, Hospital]:
    return {name: hostile.get(name) or Hospital(rig, name) for name in rig.names}
