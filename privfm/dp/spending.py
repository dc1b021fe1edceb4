"""What a ledger's entries add up to: runs, charges, counters. A pure fold, the same when writing and when checking.

An entry that makes no sense after those before it raises LedgerError: a chain whose hashes fit may still have been
written by somebody with other intentions, or by a faulty program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from privfm.dp.chain import Entry
from privfm.dp.events import SampledGaussian, compose, events_from_json, events_to_json
from privfm.dp.filter import RdpFilter
from privfm.errors import LedgerError

__all__ = ["Charge", "Declaration", "RunRecord", "Spending"]


@dataclass(frozen=True)
class Declaration:
    """What a run said about itself before its first charge.

    Args:
        plan_hash: 32 bytes.
        per_round: everything that one round releases.
        rounds: rounds planned.
        retry_rounds: rounds that may be computed, and charged, once more.
        private: False when coins were injected or noise left out, that is, when nothing here is private.
    """

    run: str
    plan_hash: bytes
    per_round: tuple[SampledGaussian, ...]
    rounds: int
    retry_rounds: int
    private: bool

    @property
    def most_rounds(self) -> int:
        """Rounds that may be charged in all."""
        return self.rounds + self.retry_rounds

    def to_json(self) -> dict[str, Any]:
        """The body of a ledger's entry."""
        return {
            "run": self.run,
            "plan_hash": self.plan_hash.hex(),
            "per_round": events_to_json(self.per_round),
            "rounds": self.rounds,
            "retry_rounds": self.retry_rounds,
            "private": self.private,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Declaration:
        """The inverse of `to_json`, whatever else the body holds."""
        return cls(
            run=body["run"],
            plan_hash=bytes.fromhex(body["plan_hash"]),
            per_round=events_from_json(body["per_round"]),
            rounds=body["rounds"],
            retry_rounds=body["retry_rounds"],
            private=body["private"],
        )


@dataclass(frozen=True)
class Charge:
    """One round's computation, paid for. `context` is 32 bytes; `sequence` is the entry's number in the ledger."""

    run: str
    round: int
    attempt: int
    context: bytes
    events: tuple[SampledGaussian, ...]
    sequence: int


@dataclass(frozen=True)
class RunRecord:
    """A run's declaration and how many rounds were charged: released, aborted, fate unknown, recovered after a loss.

    All of them count as released; the split is for people. Beside that, how many patients asked out since, and whether
    the hospital as a whole did: nothing is refunded for it.
    """

    declaration: Declaration
    released: int
    aborted: int
    unknown: int
    recovered: int
    patients_out: int = 0
    hospital_out: bool = False

    @property
    def charged(self) -> int:
        """Rounds charged in all."""
        return self.released + self.aborted + self.unknown + self.recovered

    @property
    def over(self) -> bool:
        """Whether each of its rounds was released, so that it charges nothing more."""
        return self.released >= self.declaration.rounds

    @property
    def events(self) -> tuple[SampledGaussian, ...]:
        """What the run has spent."""
        return compose(event.repeated(self.charged) for event in self.declaration.per_round)


@dataclass
class _Fate:
    charge: Charge
    vector_entry: int | None = None
    vector_hash: bytes | None = None
    outcome: str | None = None
    transcript: bytes | None = None


@dataclass
class _Run:
    declaration: Declaration
    fates: dict[int, list[_Fate]] = field(default_factory=dict)  # by round, oldest attempt first
    recovered: int = 0
    outcome: dict[str, bytes] = field(default_factory=dict)
    asked_out: list[str] = field(default_factory=list)  # "patient" or "hospital", oldest first
    newest_entry: int = 0  # of the run itself: its declaration, its charges, their ends, its conclusion

    def record(self) -> RunRecord:
        outcomes = [fate.outcome for fates in self.fates.values() for fate in fates]
        return RunRecord(
            self.declaration,
            released=outcomes.count("released"),
            aborted=outcomes.count("aborted"),
            unknown=outcomes.count(None),
            recovered=self.recovered,
            patients_out=self.asked_out.count("patient"),
            hospital_out="hospital" in self.asked_out,
        )


class Spending:
    """The state after a ledger's entries."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.runs: dict[str, _Run] = {}
        self.counter = 0
        self.charged_at = 0  # the counter when the last charge was written
        self.peers: dict[str, tuple[int, bytes]] = {}
        self.refused: set[str] = set()
        self.cap: RdpFilter | None = None
        self.hospital = ""
        self.unit = ""
        self.adjacency = ""
        self.created: dict[str, Any] = {}
        self.as_of = ""
        self.heads: set[bytes] = set()  # hash of every entry
        self.recovered_to = 0  # the counter that the newest recovery went on to
        self._fates: dict[int, _Fate] = {}  # by the charge's sequence
        for entry in entries:
            self.apply(entry)

    def apply(self, entry: Entry) -> None:
        """Take one more entry into account.

        Raises:
            LedgerError: the entry cannot follow those before it.
        """
        steps: dict[str, Callable[[Entry], None]] = {
            "genesis": self._genesis,
            "run": self._run,
            "charge": self._charge,
            "stored": self._stored,
            "closed": self._closed,
            "concluded": self._concluded,
            "forgotten": self._forgotten,
            "counter": self._counter,
            "peers": self._peers,
            "refused": self._refused,
            "recovered": self._recovered,
            "cap": self._cap,
        }
        try:
            steps[entry.kind](entry)
            self.as_of = str(entry.body["at"])
            self.heads.add(entry.hash)
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(f"ledger entry {entry.sequence} ({entry.kind}) is not understood: {error!r}") from None

    def events(self, run: str | None = None) -> tuple[SampledGaussian, ...]:
        """Everything charged, of one run or of all."""
        runs = self.runs.values() if run is None else [self.runs[run]] if run in self.runs else []
        return compose(*(each.record().events for each in runs))

    def fate(self, charge: Charge) -> _Fate:
        """Where a charge of this ledger stands."""
        fate = self._fates.get(charge.sequence)
        if fate is None or fate.charge != charge:
            raise LedgerError(f"run {charge.run!r} has no such charge for round {charge.round}")
        return fate

    def fates_of_round(self, run: str, round_number: int) -> list[_Fate]:
        """All charges of one round, oldest attempt first."""
        return self.runs[run].fates.get(round_number, []) if run in self.runs else []

    def _genesis(self, entry: Entry) -> None:
        if entry.sequence != 0:
            raise LedgerError(f"ledger entry {entry.sequence}: a second beginning")
        self.created = entry.body
        self.hospital, self.unit, self.adjacency = (entry.body[key] for key in ("hospital", "unit", "adjacency"))
        if entry.body["cap"] is not None:
            self.cap = RdpFilter.from_json(entry.body["cap"])

    def _run(self, entry: Entry) -> None:
        body = entry.body
        if body["run"] in self.runs:
            raise LedgerError(f"ledger entry {entry.sequence}: run {body['run']!r} is declared twice")
        self.runs[body["run"]] = _Run(Declaration.from_json(body), newest_entry=entry.sequence)

    def _charge(self, entry: Entry) -> None:
        body = entry.body
        run = self.runs[body["run"]]
        earlier = run.fates.setdefault(body["round"], [])
        if earlier and body["attempt"] <= earlier[-1].charge.attempt:
            raise LedgerError(f"ledger entry {entry.sequence}: an attempt of round {body['round']} is charged twice")
        context = bytes.fromhex(body["context"])
        per_round = run.declaration.per_round
        fate = _Fate(Charge(body["run"], body["round"], body["attempt"], context, per_round, entry.sequence))
        earlier.append(fate)
        self.charged_at = self.counter
        self._fates[entry.sequence] = fate
        run.newest_entry = entry.sequence

    def _stored(self, entry: Entry) -> None:
        fate = self._fates[entry.body["charge"]]
        if fate.vector_entry is not None or fate.outcome is not None:
            raise LedgerError(f"ledger entry {entry.sequence}: a second vector for one charge, or one after its end")
        fate.vector_entry, fate.vector_hash = entry.sequence, bytes.fromhex(entry.body["vector_sha256"])

    def _closed(self, entry: Entry) -> None:
        fate = self._fates[entry.body["charge"]]
        if fate.outcome is not None or entry.body["outcome"] not in ("released", "aborted"):
            raise LedgerError(f"ledger entry {entry.sequence}: a charge that ends twice, or in no known way")
        fate.outcome = entry.body["outcome"]
        fate.transcript = bytes.fromhex(entry.body["transcript"]) if entry.body["transcript"] else None
        self.runs[fate.charge.run].newest_entry = entry.sequence

    def _concluded(self, entry: Entry) -> None:
        run = self.runs[entry.body["run"]]
        if run.outcome:
            raise LedgerError(f"ledger entry {entry.sequence}: run {entry.body['run']!r} is concluded twice")
        run.outcome = {name: bytes.fromhex(digest) for name, digest in entry.body["outcome"].items()}
        run.newest_entry = entry.sequence

    def _forgotten(self, entry: Entry) -> None:
        if entry.body["what"] not in ("patient", "hospital"):
            raise LedgerError(f"ledger entry {entry.sequence}: somebody asked out who is neither patient nor hospital")
        self.runs[entry.body["run"]].asked_out.append(entry.body["what"])

    def _counter(self, entry: Entry) -> None:
        if entry.body["counter"] <= self.counter:
            raise LedgerError(f"ledger entry {entry.sequence}: the counter goes back to {entry.body['counter']}")
        self.counter = entry.body["counter"]

    def _peers(self, entry: Entry) -> None:
        for peer, (counter, head) in entry.body["peers"].items():
            self.peers[peer] = (counter, bytes.fromhex(head))
            self.refused.discard(peer)

    def _refused(self, entry: Entry) -> None:
        self.refused |= set(entry.body["peers"])

    def _recovered(self, entry: Entry) -> None:
        lost = {**entry.body.get("others", {}), entry.body["run"]: entry.body["rounds"]}
        if min(lost.values()) < 1:
            raise LedgerError(f"ledger entry {entry.sequence}: a recovery that charges nothing")
        for run, rounds in lost.items():
            self.runs[run].recovered += rounds
        self._counter(entry)
        self.charged_at = self.recovered_to = self.counter

    def _cap(self, entry: Entry) -> None:
        self.cap = RdpFilter.from_json(entry.body["cap"])
