"""The coordinator's side of a run: announce, sum, average, record. It sees sums, and images that are public."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from privfm.errors import ProtocolError
from privfm.federation.announcement import Announcement, model_hash
from privfm.federation.directory import Checkpoint, RunDirectory
from privfm.federation.engines import Engine
from privfm.federation.network import Learner, network_hash, write_trained
from privfm.federation.observer import Observer
from privfm.federation.planning import round_spec
from privfm.federation.public import public_images, public_loss
from privfm.federation.records import RoundRecord
from privfm.federation.rounds import SecureSum, average_loss, average_update, play_round
from privfm.federation.strategies import make_strategy
from privfm.plan import Plan
from privfm.secagg import Roster

__all__ = ["Coordinator"]


class Coordinator:
    """Plays a run's rounds, one durable checkpoint after the other.

    Args:
        directory: the run's folder.
        plan: complete.
        run: 16 bytes that name the run.
        roster: every hospital's public key.
        start: the initial network; its trainable parameters are overwritten.
        engine: reaches the hospitals.
        observer: hears of rounds.
        spent: epsilon of each hospital by now, for the record.
    """

    def __init__(
        self,
        directory: RunDirectory,
        plan: Plan,
        run: bytes,
        roster: Roster,
        start: Learner,
        engine: Engine,
        observer: Observer,
        spent: Callable[[], dict[str, float]],
    ) -> None:
        self._directory, self._plan, self._run, self._roster = directory, plan, run, roster
        self._learner, self._engine, self._observer, self._spent = start, engine, observer, spent
        self._start_hash = network_hash(start.network)
        self._images = public_images(plan)
        self._checkpoint = directory.load_checkpoint()
        self._strategy = make_strategy(plan.federation)
        self._strategy.load(self._checkpoint.strategy)

    @property
    def finished(self) -> int:
        """Rounds that count."""
        return self._checkpoint.rounds

    def play(self) -> Learner:
        """Play the rounds that are left and return the network after the last."""
        while self.finished < self._plan.federation.rounds:
            self._play_round(self.finished + 1)
        write_trained(self._learner.network, self._checkpoint.model)
        return self._learner

    def _play_round(self, number: int) -> None:
        self._observer.round_started(number, self._plan.federation.rounds)
        announcement, secure = self._secure_sum(number)
        update = average_update(self._plan, secure)
        model = self._strategy.step(self._checkpoint.model, update)
        write_trained(self._learner.network, model)
        record = RoundRecord(
            round=number,
            attempt=announcement.attempt,
            cohort=secure.cohort,
            survivors=secure.survivors,
            update_norm=float(update.norm()),
            public_loss=public_loss(self._learner, self._images),
            local_loss=average_loss(self._plan, secure),
            epsilon=self._spent(),
            transcript=secure.transcript.hex(),
            model_hash=model_hash(self._start_hash, announcement).hex(),
            bytes_up=secure.bytes_up,
            mask_keys={name: key.hex() for name, key in secure.mask_keys.items()},
        )
        self._checkpoint = Checkpoint(number, model, self._strategy.state())
        self._directory.finish_round(record, self._checkpoint)
        self._observer.round_finished(record)

    def _secure_sum(self, number: int) -> tuple[Announcement, SecureSum]:
        """Return the round's sum; when hospitals cannot agree on one, have all of them compute it anew.

        Raises:
            ProtocolError: it could not be had within the plan's retries.
            BudgetExceeded: a hospital's reserve is used up.
        """
        for retry in range(self._plan.federation.retry_rounds + 1):
            announcement = self._announce(number, anew=retry > 0)
            try:
                return announcement, self._attempt(announcement)
            except ProtocolError as failure:
                if retry == self._plan.federation.retry_rounds:
                    raise
                self._observer.warn(f"round {number} is begun again: {failure}")
        raise AssertionError("unreachable")

    def _announce(self, number: int, *, anew: bool) -> Announcement:
        attempt, generation = self._directory.next_attempt(number, anew=anew)
        cohort = tuple(sorted(hospital.id for hospital in self._plan.hospitals))
        return Announcement(number, attempt, generation, cohort, self._checkpoint.model.to(torch.float32).numpy())

    def _attempt(self, announcement: Announcement) -> SecureSum:
        model, parameters = model_hash(self._start_hash, announcement), len(announcement.model)
        spec = round_spec(self._plan, self._run, self._roster, announcement, model, parameters)
        return play_round(spec, announcement, self._engine, os.urandom(32))
