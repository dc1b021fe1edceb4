"""One hospital: its images, keys and ledger. Here, and only here, data, objective, mechanism and masking meet."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from privfm.dp.clipping import ClippingEngine
from privfm.dp.coins import Coins
from privfm.dp.ledger import Ledger
from privfm.errors import ProtocolError
from privfm.federation.announcement import Announcement, model_hash
from privfm.federation.local_training import train_locally
from privfm.federation.network import Learner, network_hash, trained
from privfm.federation.notebook import Memory, Notebook
from privfm.federation.planning import mechanism_of, round_spec, update_weight
from privfm.federation.unit_batches import UnitSource
from privfm.ids import HospitalId
from privfm.plan import Plan
from privfm.secagg import Client, ClientPolicy, Identity, LedgerMark, Roster, RoundSpec, Stage, quantise

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
    units: UnitSource
    membership: Membership
    ledger: Ledger
    learner: Learner
    coins: Coins
    notebook: Notebook
    _current: _Round | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._run = self.membership.run.hex()
        self._mechanism = mechanism_of(self.plan, self.plan.hospital(self.name))
        self._start_hash = network_hash(self.learner.network)
        self._parameters = trained(self.learner.network).numel()
        self.learner.network.train()
        self.notebook.note(units=len(self.units), nominal_units=self._mechanism.nominal_units)

    def answer(self, stage: Stage, incoming: bytes) -> bytes:
        """Return the hospital's message of a stage.

        Raises:
            BudgetExceeded: the ledger refuses the round's charge; nothing was computed.
            ProtocolError: the coordinator or a peer broke the protocol.
        """
        if stage is Stage.ADVERTISE:
            return self._advertise(Announcement.decode(incoming, self._parameters))
        if self._current is None or self._current.client.stage is not stage:
            raise ProtocolError(f"{self.name} was asked for {stage} out of order", ("coordinator",))
        match stage:
            case Stage.SHARE:
                return self._share(self._current.client, incoming)
            case Stage.MASK:
                return bytes(self._current.client.mask(incoming, [self._update(self._current)]))
            case Stage.AGREE:
                return self._agree(self._current, incoming)
            case Stage.UNMASK:
                return self._unmask(self._current, incoming)

    def finish(self) -> None:
        """Close the charge of the last round that was unmasked, if it is still open; call when the run is over."""
        memory = self.notebook.memory()
        if memory.transcript is not None:
            charge = self.ledger.pending(self._run, memory.round)
            if charge is not None:
                self.ledger.close(charge, "released", memory.transcript)

    def _advertise(self, announcement: Announcement) -> bytes:
        memory = self.notebook.memory()
        if (announcement.round, announcement.generation) < (memory.round, memory.generation if memory.round else 0):
            raise ProtocolError(f"round {announcement.round} was asked for after {memory.round}", ("coordinator",))
        self._leave_behind(memory, announcement)
        model = model_hash(self._start_hash, announcement)
        member = self.membership
        spec = round_spec(self.plan, member.run, member.roster, announcement, model, self._parameters)
        client = Client(spec, member.identity, member.policy)
        mark = LedgerMark(self.ledger.next_counter(), self.ledger.head())
        self.notebook.remember(memory.advertised(*spec.number, announcement.generation))
        self._current = _Round(announcement, spec, client)
        entropy = self.coins.stream("round", *spec.number).read(32)
        return client.advertise(mark, answered=memory.answered, entropy=entropy)

    def _leave_behind(self, memory: Memory, announcement: Announcement) -> None:
        """Close what an earlier round, or an earlier generation of this one, left open."""
        if announcement.round > memory.round:
            self.finish()
        elif announcement.generation > memory.generation:
            pending = self.ledger.pending(self._run, announcement.round)
            if pending is not None:
                self.ledger.close(pending, "aborted")

    def _share(self, client: Client, incoming: bytes) -> bytes:
        seen = {peer: LedgerMark(*mark) for peer, mark in self.ledger.peers_seen().items()}
        outgoing = client.share(incoming, seen=seen)
        self.ledger.remember_peers({peer: (mark.counter, mark.head) for peer, mark in client.marks.items()})
        return outgoing

    def _agree(self, current: _Round, incoming: bytes) -> bytes:
        """Sign the survivors, unless the same stored update was once agreed to be summed with others.

        Two sums of one update over different survivors differ by somebody's individual update. Two sets of signers,
        each as large as the threshold, share an honest hospital, so it is enough that whoever signed remembers.
        """
        memory = self.notebook.memory()
        outgoing = current.client.agree(incoming, bound_to=memory.survivors)
        self.notebook.remember(memory.agreed(current.client.agreed))
        return outgoing

    def _unmask(self, current: _Round, incoming: bytes) -> bytes:
        outgoing = current.client.unmask(incoming)
        self.notebook.remember(self.notebook.memory().unmasked(current.client.finished.transcript))
        return outgoing

    def _update(self, current: _Round) -> Int32[np.ndarray, " parameters"]:
        """Return the round's quantised update: the stored one for a retry, else a new one, charged before computing."""
        stored = self.ledger.load_update(self._run, current.number)
        if stored is not None:
            return np.frombuffer(stored, dtype="<i4").astype(np.int32)
        attempt = self.ledger.next_attempt(self._run, current.number)
        charge = self.ledger.charge(self._run, current.number, attempt, current.spec.context0)
        update = update_weight(self.plan, self.plan.hospital(self.name)) * self._train(current, attempt)
        rounding = self.coins.stream("rounding", current.number, attempt).read(32)
        quantised = quantise(update.numpy(), current.spec.vectors[0], rounding)
        self.ledger.store_update(charge, quantised.astype("<i4").tobytes())
        return quantised

    def _train(self, current: _Round, attempt: int) -> Float[Tensor, " parameters"]:
        start = torch.from_numpy(current.announcement.model)

        def noised_gradient(step: int) -> Float[Tensor, " parameters"]:
            return self._noised_gradient((current.number, attempt, step))

        return train_locally(
            self.learner.network, start, self.plan.optimizer, self.plan.federation.local_steps, noised_gradient
        )

    def _noised_gradient(self, step: tuple[int, int, int]) -> Float[Tensor, " parameters"]:
        """Return what the mechanism releases of one step: Poisson draw, clipped sum over the drawn units, noise."""
        network, objective, _ = self.learner
        engine = ClippingEngine(network, self._mechanism.clip_norm)
        drawn = self._mechanism.draw(len(self.units), self.coins.stream("draw", *step))
        losses: list[float] = []
        for batch in self.units.batches(drawn, lambda unit: self.coins.stream("unit", *step, unit).generator()):

            def unit_losses(views: Tensor = batch.views, rngs: list[np.random.Generator] = batch.rngs) -> Tensor:
                values = objective.unit_losses(network, views, rngs)
                losses.extend(values.detach().tolist())
                return values

            engine.add(unit_losses, len(batch))
        mean_loss = sum(losses) / len(losses) if losses else None
        self.notebook.note(round=step[0], attempt=step[1], step=step[2], drawn=len(drawn), loss=mean_loss)
        return self._mechanism.release(engine.finish(), self.coins.stream("noise", *step))
