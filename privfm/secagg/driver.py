"""The order of a hospital's steps as data, and an object that takes each of them once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Int32

from privfm.errors import ProtocolError
from privfm.secagg import client
from privfm.secagg.identity import Identity
from privfm.secagg.roster import COORDINATOR
from privfm.secagg.spec import ClientPolicy, LedgerMark, RoundSpec
from privfm.secagg.stages import Stage

__all__ = ["TRANSITIONS", "Client", "Transition", "state_diagram"]


@dataclass(frozen=True)
class Transition:
    """One step of a hospital: at `stage`, in state `before`, what it `receives` is answered with what it `sends`."""

    stage: Stage
    before: type
    receives: str
    sends: str
    after: type


TRANSITIONS = (
    Transition(Stage.ADVERTISE, client.Ready, "(its own plan)", "key package", client.Advertised),
    Transition(Stage.SHARE, client.Advertised, "cohort", "deal", client.Shared),
    Transition(Stage.MASK, client.Shared, "deliveries", "upload", client.Masked),
    Transition(Stage.AGREE, client.Masked, "survivors", "agreement", client.Agreed),
    Transition(Stage.UNMASK, client.Agreed, "agreements", "reveal", client.Finished),
)


def state_diagram() -> str:
    """The table as a Mermaid diagram, which docs/protocol.md shows."""
    lines = ["stateDiagram-v2", f"    [*] --> {TRANSITIONS[0].before.__name__}"]
    for step in TRANSITIONS:
        label = f"{step.stage}: {step.receives} / {step.sends}"
        lines.append(f"    {step.before.__name__} --> {step.after.__name__}: {label}")
        lines.append(f"    {step.before.__name__} --> [*]: a rule is broken")
    return "\n".join([*lines, f"    {TRANSITIONS[-1].after.__name__} --> [*]"])


_STAGE_FROM = {transition.before: transition.stage for transition in TRANSITIONS}

State = TypeVar("State")


class Client:
    """A hospital in one attempt at one round: five calls in order, each once; one that fails closes it for good.

    Not to be stored or copied: a hospital that loses it has dropped out of the round.

    Args:
        spec: built from the hospital's own plan, roster and copy of the model.
        identity: its own.
        policy: its own.
    """

    def __init__(self, spec: RoundSpec, identity: Identity, policy: ClientPolicy) -> None:
        self._state: object = client.Ready(spec, identity, policy)
        self._marks: Mapping[str, LedgerMark] | None = None
        self._agreed: tuple[str, ...] | None = None

    @property
    def stage(self) -> Stage | None:
        """What it will answer next; None when it is through, or has failed."""
        return _STAGE_FROM.get(type(self._state))

    @property
    def marks(self) -> Mapping[str, LedgerMark]:
        """Where ledgers stand: of the cohort after share, of the survivors after agree. Keep the highest, each time."""
        if self._marks is None:
            raise ValueError("marks: not known before share was answered")
        return self._marks

    @property
    def agreed(self) -> tuple[str, ...]:
        """The survivors that it signed for, after agree: store them before the signature leaves."""
        if self._agreed is None:
            raise ValueError("agreed: not known before agree was answered")
        return self._agreed

    @property
    def finished(self) -> client.Finished:
        """Survivors and transcript, after unmask."""
        if not isinstance(self._state, client.Finished):
            raise ValueError("finished: not before unmask was answered")
        return self._state

    def advertise(self, mark: LedgerMark, *, answered: tuple[int, int] | None, entropy: bytes) -> bytes:
        """The key package. See `client.advertise`."""
        state = self._take(client.Ready)
        self._state, outgoing = client.advertise(state, mark, answered=answered, entropy=entropy)
        return outgoing

    def share(self, incoming: bytes, *, seen: Mapping[str, LedgerMark]) -> bytes:
        """The deal. See `client.share`."""
        state, outgoing = client.share(self._take(client.Advertised), incoming, seen=seen)
        self._state, self._marks = state, state.marks
        return outgoing

    def mask(
        self, incoming: bytes, vectors: Callable[[], Sequence[Int32[np.ndarray, " _"]]], *, threads: int = 1
    ) -> memoryview:
        """The upload. See `client.mask`."""
        self._state, outgoing = client.mask(self._take(client.Shared), incoming, vectors, threads=threads)
        return outgoing

    def agree(self, incoming: bytes, *, bound_to: Sequence[str] | None = None) -> bytes:
        """The agreement. See `client.agree`."""
        state, outgoing = client.agree(self._take(client.Masked), incoming, bound_to=bound_to)
        self._state, self._agreed = state, state.survivors
        self._marks = {name: self.marks[name].masked() for name in state.survivors}
        return outgoing

    def unmask(self, incoming: bytes) -> bytes:
        """The reveal. See `client.unmask`."""
        self._state, outgoing = client.unmask(self._take(client.Agreed), incoming)
        return outgoing

    def _take(self, kind: type[State]) -> State:
        """The state, which nobody gets again.

        Raises:
            ProtocolError: another stage is due; an honest coordinator asks once and in order. Nothing changes.
        """
        state = self._state
        if not isinstance(state, kind):
            due = _STAGE_FROM.get(type(state), "nothing")
            raise ProtocolError(f"asked to {_STAGE_FROM[kind]}, due is {due}", (COORDINATOR,))
        self._state = None
        return state
