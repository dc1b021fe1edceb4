"""One honest round, kept step by step, so that a test can repeat any step with another input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rounds import Mail, Rig, entropy, identity, mark_of

from privfm.secagg import Stage, client, server

STAGES = tuple(Stage)


@dataclass
class Recording:
    """States and messages of a round: `incoming[stage][name]` is answered from `before[stage][name]` with `sent`."""

    rig: Rig
    before: dict[Stage, dict[str, Any]] = field(default_factory=dict)
    incoming: dict[Stage, Mail] = field(default_factory=dict)
    sent: dict[Stage, Mail] = field(default_factory=dict)
    coordinator: dict[Stage, Any] = field(default_factory=dict)
    outcome: Any = None

    def hospital_step(self, stage: Stage, name: str, incoming: bytes) -> tuple[Any, bytes]:
        """What a hospital answers at a stage of this round."""
        state = self.before[stage][name]
        if stage is Stage.ADVERTISE:
            secret = entropy("round", name, self.rig.spec.number)
            return client.advertise(state, mark_of(name), answered=None, entropy=secret)
        if stage is Stage.SHARE:
            return client.share(state, incoming, seen={})
        if stage is Stage.MASK:
            masked, upload = client.mask(state, incoming, lambda: self.rig.levels[name])
            return masked, bytes(upload)
        return (client.agree if stage is Stage.AGREE else client.unmask)(state, incoming)

    def coordinator_step(self, stage: Stage, messages: Mail) -> Any:
        """What the coordinator makes of a stage's messages: (state, mail), and at the end the outcome."""
        if stage is Stage.ADVERTISE:
            return server.advertise(self.rig.spec, messages, entropy=entropy("coordinator"))
        steps: dict[Stage, Callable[..., Any]] = {
            Stage.SHARE: server.share,
            Stage.MASK: server.mask,
            Stage.AGREE: server.agree,
            Stage.UNMASK: server.unmask,
        }
        return steps[stage](self.coordinator[stage], messages)


def record(rig: Rig, *, lost: dict[Stage, str] | None = None) -> Recording:
    """An honest round; `lost` names a hospital whose message does not arrive at a stage."""
    story = Recording(rig)
    states: dict[str, Any] = {name: client.Ready(rig.spec, identity(name), rig.policy) for name in rig.names}
    mail: Mail = dict.fromkeys(rig.names, b"")
    for index, stage in enumerate(STAGES):
        story.before[stage], story.incoming[stage] = states, mail
        answers = {name: story.hospital_step(stage, name, mail[name]) for name in mail}
        states = {name: state for name, (state, _) in answers.items()}
        story.sent[stage] = {name: sent for name, (_, sent) in answers.items() if name != (lost or {}).get(stage)}
        result = story.coordinator_step(stage, story.sent[stage])
        if stage is Stage.UNMASK:
            story.outcome = result
        else:
            story.coordinator[STAGES[index + 1]], mail = result
    return story
