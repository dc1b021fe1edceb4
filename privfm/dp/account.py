"""What a ledger says, without the file: everything that can be asked of it."""

from __future__ import annotations

from privfm.dp.events import SampledGaussian, total_steps
from privfm.dp.filter import RdpFilter
from privfm.dp.spending import Charge, RunRecord, Spending
from privfm.errors import LedgerError

__all__ = ["COUNTER_LIMIT", "EPOCH", "Account", "next_epoch"]

COUNTER_LIMIT = 2**63

EPOCH = 2**32
"""Counters between two recoveries. A ledger that went back could catch up with what its peers saw by trying again and
again; only a recovery, which charges what was lost, reaches the next epoch."""


def next_epoch(counter: int) -> int:
    """The first counter of the epoch after.

    >>> next_epoch(3) == next_epoch(EPOCH - 1) == EPOCH
    True
    """
    return (counter // EPOCH + 1) * EPOCH


class Account:
    """A hospital's spending, for asking; `privfm.dp.ledger.Ledger` is the one that can be written to."""

    def __init__(self, spending: Spending) -> None:
        self._spending = spending

    @property
    def hospital(self) -> str:
        """Whose ledger this is."""
        return self._spending.hospital

    @property
    def unit(self) -> str:
        """Whose data one privacy unit is."""
        return self._spending.unit

    @property
    def cap(self) -> RdpFilter | None:
        """The lifetime cap in force."""
        return self._spending.cap

    @property
    def counter(self) -> int:
        """The last counter that `next_counter` gave out; 0 before the first."""
        return self._spending.counter

    @property
    def as_of(self) -> str:
        """Date of the newest entry, for people to read."""
        return self._spending.as_of

    def events(self, run: str | None = None) -> tuple[SampledGaussian, ...]:
        """Everything charged, whatever came of it: of `run`, or of the hospital's lifetime."""
        return self._spending.events(run)

    def spent(self, run: str) -> int:
        """Noisy steps charged to `run`; 0 for one not on record."""
        return total_steps(self._spending.events(run))

    def remaining(self, run: str) -> int:
        """Rounds that `run` may still charge, its retry reserve included; the lifetime cap may stop it sooner."""
        record = self._record(run)
        return max(0, record.declaration.most_rounds - record.charged)

    def runs(self) -> tuple[RunRecord, ...]:
        """Every run on record, oldest first."""
        return tuple(run.record() for run in self._spending.runs.values())

    def transcripts(self, run: str) -> dict[int, bytes]:
        """Transcript hash of every released round of `run` that has one."""
        self._record(run)
        return {
            round_number: fates[-1].transcript
            for round_number, fates in self._spending.runs[run].fates.items()
            if fates[-1].outcome == "released" and fates[-1].transcript is not None
        }

    def contexts(self, run: str, round: int) -> frozenset[bytes]:
        """What the charges of a round were bound to."""
        return frozenset(fate.charge.context for fate in self._spending.fates_of_round(run, round))

    def outcome(self, run: str) -> dict[str, bytes]:
        """SHA-256 of what was left at the run's end, by name; nothing before it is concluded."""
        self._record(run)
        return dict(self._spending.runs[run].outcome)

    @property
    def asked_out(self) -> bool:
        """Whether a patient, or the hospital as a whole, asked out of a run; what it charged stays charged."""
        return any(record.patients_out or record.hospital_out for record in self.runs())

    @property
    def private(self) -> bool:
        """False for ever once a run with injected coins or without noise was charged."""
        return all(record.declaration.private or not record.charged for record in self.runs())

    def next_attempt(self, run: str, round: int) -> int:
        """The smallest attempt number that is free for this round."""
        fates = self._spending.fates_of_round(run, round)
        return fates[-1].charge.attempt + 1 if fates else 0

    def newest_round(self, run: str) -> int:
        """The highest round charged to `run`; 0 before the first."""
        return max(self._spending.runs[run].fates, default=0) if run in self._spending.runs else 0

    def pending(self, run: str, round: int) -> Charge | None:
        """The charge of this round whose vector is stored and whose end is not known: send that vector again."""
        for fate in reversed(self._spending.fates_of_round(run, round)):
            if fate.outcome is None and fate.vector_entry is not None:
                return fate.charge
        return None

    def peers_seen(self) -> dict[str, tuple[int, bytes]]:
        """Per peer, the counter that it has to surpass and its ledger's head at the highest it showed (32 bytes).

        That is the highest it showed, or the last of that epoch for a peer that is refused until it has recovered.
        """
        refused = self._spending.refused
        return {
            peer: (min(next_epoch(counter) - 1, COUNTER_LIMIT) if peer in refused else counter, head)
            for peer, (counter, head) in self._spending.peers.items()
        }

    def highest_seen(self, peer: str) -> int:
        """The highest counter that a peer showed; 0 for a stranger."""
        return self.last_seen(peer)[0]

    def last_seen(self, peer: str) -> tuple[int, bytes]:
        """The same with the head of the peer's ledger at that counter, 32 bytes; empty for a stranger."""
        return self._spending.peers.get(peer, (0, b""))

    def lacks(self, counter: int, head: bytes) -> bool:
        """Whether a head that this ledger showed at `counter` is in it no longer, and no recovery made up for that.

        A chain can be written anew from its first entry on; what peers remember of the old one cannot.
        """
        return head not in self._spending.heads and counter > self._spending.recovered_to

    def lost_rounds(self, counter: int) -> int:
        """How many rounds may have been released that are not on record, when a peer saw `counter` of this ledger."""
        return max(0, counter - self._spending.charged_at + 1) // 2

    def _record(self, run: str) -> RunRecord:
        if run not in self._spending.runs:
            raise LedgerError(f"{self.hospital}: run {run!r} is not on record; open it first")
        return self._spending.runs[run].record()
