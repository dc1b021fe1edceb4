"""One hospital: its images, keys and ledger. Here, and only here, data, objective, mechanism and masking meet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from privfm.dp.clipping import ClippingEngine, check_clippable
from privfm.dp.coins import Coins
from privfm.dp.ledger import Ledger
from privfm.dp.mechanism import StepMechanism
from privfm.errors import InputError, LedgerError, ProtocolError, RolledBackError
from privfm.federation.announcement import Announcement, model_hash
from privfm.federation.local_training import train_locally
from privfm.federation.network import Learner, network_hash, trained
from privfm.federation.notebook import Memory, Notebook
from privfm.federation.optimizers import NoisedGradient
from privfm.federation.planning import mechanism_of, round_spec, update_weight
from privfm.federation.unit_batches import UnitSource
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
    units: UnitSource
    membership: Membership
    ledger: Ledger
    learner: Learner
    coins: Coins
    notebook: Notebook
    _current: _Round | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._run = self.membership.run.hex()
        self._mechanism = self._own_mechanism()
        self._start_hash = network_hash(self.learner.network)
        self._parameters = trained(self.learner.network).numel()
        self.learner.network.train()
        self.notebook.note(units=len(self.units), nominal_units=self._mechanism.nominal_units)
        self._check_network()

    def _own_mechanism(self) -> StepMechanism:
        mechanism, adapted = mechanism_of(self.plan, self.plan.hospital(self.name)), self.notebook.clip_norm()
        return mechanism if mechanism.adaptive is None or adapted is None else replace(mechanism, clip_norm=adapted)

    def _check_network(self) -> None:
        """Raise ModelError when the network cannot be clipped: found out on random pixels, never on patients."""
        network, objective, plan = self.learner
        rng, data = np.random.default_rng(0), plan.data
        pixels = rng.standard_normal((2, 2, data.channels, data.image_size, data.image_size), dtype=np.float32)
        views = torch.from_numpy(pixels).to(next(network.parameters()).device)

        def unit_losses() -> Tensor:
            return objective.unit_losses(network, views, [np.random.default_rng(unit) for unit in range(2)])

        check_clippable(network, unit_losses, 2)

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

    def finish(self) -> None:
        """Close what the last round left open; call when the run is over."""
        self._close_round(self._memory())

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

        def vectors() -> list[Int32[np.ndarray, " parameters"]]:
            self._take_counter(self._memory())
            return [self._update(current)]

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

    def _update(self, current: _Round) -> Int32[np.ndarray, " parameters"]:
        """Return the round's quantised update: the stored one for a retry, else a new one, charged before computing.

        A charge's context is the hash of model and generation, so that a vector is never masked for another.
        """
        memory = self._memory()
        pending = self.ledger.pending(self._run, current.number)
        if pending is not None and pending.context != memory.model:
            self.ledger.close(pending, "aborted")
            pending = None
        stored = None if pending is None else self.ledger.load_update(self._run, current.number)
        if stored is not None:
            return np.frombuffer(stored, dtype="<i4").astype(np.int32)
        if memory.survivors is not None:
            raise ProtocolError(f"round {current.number} is over; only a new generation is computed", (COORDINATOR,))
        attempt = self.ledger.next_attempt(self._run, current.number)
        charge = self.ledger.charge(self._run, current.number, attempt, memory.model)
        update = update_weight(self.plan, self.plan.hospital(self.name)) * self._train(current, attempt)
        rounding = self.coins.stream("rounding", current.number, attempt).read(32)
        quantised = quantise(update.numpy(), current.spec.vectors[0], rounding)
        self.ledger.store_update(charge, quantised.astype("<i4").tobytes())
        return quantised

    def _train(self, current: _Round, attempt: int) -> Float[Tensor, " parameters"]:
        """Train, or drop out in the same words whatever the reason, which stays in the hospital's own notes."""
        start = torch.from_numpy(current.announcement.model)

        def noised_gradient(step: int) -> NoisedGradient:
            return self._noised_gradient((current.number, attempt, step))

        steps = self.plan.federation.local_steps
        try:
            update = train_locally(self.learner.network, start, self.plan.optimizer, steps, noised_gradient)
            if self._mechanism.adaptive is not None:
                self.notebook.keep_clip_norm(self._mechanism.clip_norm)
            return update
        except InputError as error:
            self.notebook.note(round=current.number, attempt=attempt, error=str(error))
            raise ProtocolError(f"{self.name} cannot go on; its own notes say why", (self.name,)) from None

    def _noised_gradient(self, step: tuple[int, int, int]) -> NoisedGradient:
        """Return what the mechanism releases of one step: Poisson draw, clipped sum over the drawn units, noise.

        An adaptive clip norm then moves on, for the next step.
        """
        network, objective, _ = self.learner
        mechanism, precision = self._mechanism, getattr(torch, self.plan.performance.precision)
        engine = ClippingEngine(network, mechanism.clip_norm, precision)
        drawn = mechanism.draw(len(self.units), self.coins.stream("draw", *step))
        losses: list[float] = []
        for batch in self.units.batches(drawn, lambda unit: self.coins.stream("unit", *step, unit).generator()):

            def unit_losses(views: Tensor = batch.views, rngs: list[np.random.Generator] = batch.rngs) -> Tensor:
                values = objective.unit_losses(network, views, rngs)
                losses.extend(values.detach().tolist())
                return values

            engine.add(unit_losses, len(batch))
        mean_loss = sum(losses) / len(losses) if losses else None
        self.notebook.note(round=step[0], attempt=step[1], step=step[2], drawn=len(drawn), loss=mean_loss)
        clipped = engine.finish()
        released = mechanism.release(clipped, self.coins.stream("noise", *step))
        self._mechanism = mechanism.adapted(clipped, self.coins.stream("count", *step))
        return NoisedGradient(released, mechanism.noise_std)
