"""One hospital: its images, keys and ledger. Here, and only here, data, objective, mechanism and masking meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from privfm.dp.coins import Coins
from privfm.dp.ledger import Ledger
from privfm.errors import InputError, LedgerError, ProtocolError, RolledBackError
from privfm.federation.announcement import Announcement, model_hash
from privfm.federation.imprints import imprints, layer_of
from privfm.federation.network import Learner, network_hash, trained, weights_at
from privfm.federation.notebook import Memory, Notebook
from privfm.federation.planning import mechanism_of, round_spec, update_weight
from privfm.federation.releases import Releases
from privfm.federation.unit_batches import Units
from privfm.ids import HospitalId
from privfm.plan import Plan
from privfm.secagg import COORDINATOR, Client, ClientPolicy, Identity, LedgerMark, Roster, RoundSpec, Stage, quantise

__all__ = ["Hospital", "Membership"]


@dataclass(frozen=True)
class Membership:
    """What a hospital holds as a member of a run.

    Args:
        run: 16 bytes that name the run.
        identity: its signing key.
        roster: everybody's public keys.
        policy: how few hospitals it agrees to be summed with, and how many it distrusts.
    """

    run: bytes
    identity: Identity
    roster: Roster
    policy: ClientPolicy


@dataclass(frozen=True)
class _Round:
    announcement: Announcement
    spec: RoundSpec
    client: Client

    @property
    def number(self) -> int:
        return self.announcement.round


@dataclass
class Hospital:
    """Answers the coordinator's stages; nothing but masked, noised updates and key material leaves it.

    Args:
        plan: the run's plan, with this hospital in it.
        name: which hospital of the plan this is.
        units: its images, grouped by privacy unit.
        membership: keys, roster and policy.
        ledger: its ledger, with the run opened.
        learner: its own copy of the network, at the run's start.
        coins: its secret randomness.
        notebook: its own files; losses and counts go there and nowhere else.
    """

    plan: Plan
    name: HospitalId
    units: Units
    membership: Membership
    ledger: Ledger
    learner: Learner
    coins: Coins
    notebook: Notebook
    _current: _Round | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._run = self.membership.run.hex()
        self._start_hash = network_hash(self.learner.network)
        self._parameters = trained(self.learner.network).numel()
        self._unsuspicious = frozenset(map(layer_of, imprints(dict(self.learner.network.named_parameters()))))
        mechanism = mechanism_of(self.plan, self.plan.hospital(self.name))
        self._releases = Releases(self.plan, mechanism, self.units, self.learner, self.coins, self.notebook)

    def answer(self, stage: Stage, incoming: bytes) -> bytes:
        """Return the hospital's message of a stage.

        Raises:
            BudgetExceeded: the ledger refuses the round's charge; nothing was computed.
            ProtocolError: the coordinator or a peer broke the protocol.
        """
        if stage is Stage.ADVERTISE:
            return self._advertise(Announcement.decode(incoming, self._parameters))
        if self._current is None or self._current.client.stage is not stage:
            raise ProtocolError(f"{self.name} was asked for {stage} out of order", (COORDINATOR,))
        match stage:
            case Stage.SHARE:
                return self._share(self._current.client, incoming)
            case Stage.MASK:
                return self._mask(self._current, incoming)
            case Stage.AGREE:
                return self._agree(self._current, incoming)
            case Stage.UNMASK:
                return self._unmask(self._current, incoming)

    def finish(self, outcome: Mapping[str, bytes]) -> None:
        """Close what the last round left open, and keep the hashes of what the run leaves; call when it is over."""
        self._close_round(self._memory())
        self.ledger.conclude(self._run, outcome)

    def _memory(self) -> Memory:
        """Return what this hospital remembers; LedgerError when it is older than the ledger."""
        memory = self.notebook.memory()
        if not self.ledger.counter <= memory.counter <= self.ledger.counter + 1:
            raise LedgerError(
                f"{self.ledger.path}: {self.name}'s own folder and its ledger do not belong together; one of them was "
                "restored from a backup; restore both, or start a new run"
            )
        return memory

    def _close_round(self, memory: Memory) -> None:
        """Close the open charge of a round that is over, and drop its vector."""
        charge = self.ledger.pending(self._run, memory.round) if memory.round else None
        if charge is not None:
            outcome: Literal["released", "aborted"] = "aborted" if memory.transcript is None else "released"
            self.ledger.close(charge, outcome, memory.transcript)

    def _advertise(self, announcement: Announcement) -> bytes:
        """Check everything, then remember, then let go of older rounds, then answer; a crash may come in between."""
        memory, model = self._memory(), model_hash(self._start_hash, announcement)
        self._check_follows(memory, announcement, model)
        spec = self._spec(announcement, model)
        if memory.answered is not None and spec.number <= memory.answered:
            raise ProtocolError(f"attempt {announcement.attempt} is not newer than the last", (COORDINATOR,))
        mark = self._take_counter(memory.advertised(*spec.number, announcement.generation, model))
        if announcement.round > memory.round:
            self._close_round(memory)
        client = Client(spec, self.membership.identity, self.membership.policy)
        self._current = _Round(announcement, spec, client)
        entropy = self.coins.stream("round", *spec.number).read(32)
        return client.advertise(mark, answered=memory.answered, entropy=entropy)

    def _take_counter(self, memory: Memory) -> LedgerMark:
        """Take the ledger's next counter, and remember it first: a crash in between leaves the memory one ahead."""
        self.notebook.remember(replace(memory, counter=self.ledger.counter + 1))
        return LedgerMark(self.ledger.next_counter(), self.ledger.head())

    def _check_follows(self, memory: Memory, announcement: Announcement, model: bytes) -> None:
        """A round does not come back, nor a generation of it, and a generation has one model.

        Otherwise one hospital could be made to compute anew, or on another model, while the others mask what they
        stored, and two sums would show what is its own.
        """
        number = (announcement.round, announcement.generation)
        if memory.round and number < (memory.round, memory.generation):
            raise ProtocolError(f"round {announcement.round} was asked for after {memory.round}", (COORDINATOR,))
        if number == (memory.round, memory.generation) and model != memory.model:
            raise ProtocolError(f"round {announcement.round} was announced with two models", (COORDINATOR,))

    def _spec(self, announcement: Announcement, model: bytes) -> RoundSpec:
        member = self.membership
        try:
            spec = round_spec(self.plan, member.run, member.roster, announcement, model, self._parameters)
        except ValueError as error:
            raise ProtocolError(f"the announcement does not fit the plan: {error}", (COORDINATOR,)) from None
        for invited in (len(self.plan.hospitals), spec.size):  # over all attempts at a round, and in this one
            member.policy.check(invited, spec.threshold)
        return spec

    def _share(self, client: Client, incoming: bytes) -> bytes:
        seen = {peer: LedgerMark(*mark) for peer, mark in self.ledger.peers_seen().items()}
        try:
            outgoing = client.share(incoming, seen=seen)
        except RolledBackError as error:
            self.ledger.refuse_peers(error.blamed)
            raise
        self._remember_marks(client)
        return outgoing

    def _remember_marks(self, client: Client) -> None:
        self.ledger.remember_peers({peer: (mark.counter, mark.head) for peer, mark in client.marks.items()})

    def _mask(self, current: _Round, incoming: bytes) -> bytes:
        """Compute and charge the update only once the deliveries hold, so that a lie about them costs no budget.

        A counter is taken before, so that a ledger restored to the moment after advertising is seen to have gone back.
        """

        def vectors() -> list[Int32[np.ndarray, " _"]]:
            self._take_counter(self._memory())
            return self._vectors(current)

        return bytes(current.client.mask(incoming, vectors))

    def _agree(self, current: _Round, incoming: bytes) -> bytes:
        """Sign the survivors, unless the same stored update was once agreed to be summed with others.

        Two sums of one update over different survivors differ by somebody's individual update. Two sets of signers,
        each as large as the threshold, share an honest hospital, so it is enough that whoever signed remembers.
        """
        memory = self._memory()
        outgoing = current.client.agree(incoming, bound_to=memory.survivors)
        self.notebook.remember(memory.agreed(current.client.agreed))
        self._remember_marks(current.client)
        return outgoing

    def _unmask(self, current: _Round, incoming: bytes) -> bytes:
        outgoing = current.client.unmask(incoming)
        self.notebook.remember(self._memory().unmasked(current.client.finished.transcript))
        return outgoing

    def _vectors(self, current: _Round) -> list[Int32[np.ndarray, " _"]]:
        """Return what the round sends, quantised: the stored vectors for a retry, else new ones, charged before.

        A charge's context is the hash of model and generation, so that a vector is never masked for another.
        """
        memory = self._memory()
        pending = self.ledger.pending(self._run, current.number)
        if pending is not None and pending.context != memory.model:
            self.ledger.close(pending, "aborted")
            pending = None
        stored = None if pending is None else self.ledger.load_update(self._run, current.number)
        if stored is not None:
            ends = np.cumsum([vector.length for vector in current.spec.vectors])
            return np.split(np.frombuffer(stored, dtype="<i4").astype(np.int32), ends[:-1])
        if memory.survivors is not None:
            raise ProtocolError(f"round {current.number} is over; only a new generation is computed", (COORDINATOR,))
        attempt = self.ledger.next_attempt(self._run, current.number)
        charge = self.ledger.charge(self._run, current.number, attempt, memory.model)
        values = self._compute(current, attempt)
        vectors = self._quantised(values, current, attempt)
        self.ledger.store_update(charge, np.concatenate(vectors).astype("<i4").tobytes())
        return vectors

    def _compute(self, current: _Round, attempt: int) -> list[Float[Tensor, " _"]]:
        """Train, or drop out in the same words whatever the reason, which stays in the hospital's own notes."""
        model = torch.from_numpy(current.announcement.model)
        self._examine(model, current.number, attempt)
        try:
            return self._releases.of_round(model, current.number, attempt)
        except InputError as error:
            self.notebook.note(round=current.number, attempt=attempt, error=str(error))
            raise ProtocolError(f"{self.name} cannot go on; its own notes say why", (self.name,)) from None

    def _examine(self, model: Float[Tensor, " parameters"], number: int, attempt: int) -> None:
        """Note a model that was made to lay images open. The guarantee holds whatever the model; trust may not.

        Layers that were so from the start are left out, however much of them is: whoever looks at the start is told.
        """
        lines = imprints(weights_at(self.learner.network, model))
        suspicious = [line for line in lines if layer_of(line) not in self._unsuspicious]
        if suspicious:
            self.notebook.note_imprints(number, attempt, suspicious)

    def _quantised(
        self, values: list[Float[Tensor, " _"]], current: _Round, attempt: int
    ) -> list[Int32[np.ndarray, " _"]]:
        weight = update_weight(self.plan, self.plan.hospital(self.name))
        roundings = [self.coins.stream("rounding", current.number, attempt, place) for place in range(len(values))]
        return [
            quantise((weight * value).numpy(), spec, rounding.read(32))
            for value, spec, rounding in zip(values, current.spec.vectors, roundings, strict=True)
        ]
