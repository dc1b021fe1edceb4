"""A hospital's own account of everything that it ever released.

Order of a round, which `Ledger` enforces where it can:

1. Take a `next_counter` and show it to the peers; take another once they have dealt. Both again for a retry.
2. `charge` the round: on disk before anything is computed.
3. Compute. `store_update` the noised, quantised vector: on disk before anything is sent.
4. Send, retry. A retry sends the *same* vector (`load_update`) and costs nothing; a vector that was lost before it was
   stored is computed anew as a new attempt, which is charged again.
5. `close` the charge when the round is over for good.
6. `conclude` the run with the hashes of what it leaves behind.

A charge whose fate nobody knows, because its process died, counts as released. Nothing is ever refunded.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from privfm import __version__
from privfm.dp.account import Account
from privfm.dp.asking_out import AskedOut
from privfm.dp.capped import Capped
from privfm.dp.chain import ChainFile
from privfm.dp.events import ADJACENCY, SampledGaussian, compose
from privfm.dp.filter import RdpFilter
from privfm.dp.journal import Clock, of_32_bytes, utc_now
from privfm.dp.spending import Charge, Declaration, RunRecord, Spending
from privfm.dp.standing import Standing
from privfm.errors import BudgetExceeded, LedgerError

__all__ = ["Charge", "Clock", "Declaration", "Ledger", "RunRecord"]


class Ledger(Standing, Capped, AskedOut):
    """One hospital's ledger, open. Use `create` or `open`; it is a context manager.

    Guarantees:
        Every method that changes something is durable when it returns, and when it raises, what it would have allowed
        must not be done. `events()` never leaves out a release that was charged first.

    The clock is written down for people to read; nothing is decided by it.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "north.sqlite"
    >>> step = SampledGaussian(0.1, 2.0, 5)
    >>> with Ledger.create(path, "north") as ledger:
    ...     ledger.open_run("run-1", bytes(32), [step], rounds=2, retry_rounds=0)
    ...     charge = ledger.charge("run-1", 0, 0, context=bytes(32))
    ...     ledger.store_update(charge, b"noised")
    ...     ledger.close(charge, "released", transcript=bytes(32))
    >>> with Ledger.open(path, "north", read_only=True) as ledger:
    ...     ledger.spent("run-1"), ledger.remaining("run-1")
    (5, 1)
    """

    @classmethod
    def create(
        cls,
        path: Path,
        hospital: str,
        *,
        unit: str = "patient",
        cap: RdpFilter | None = None,
        clock: Clock = utc_now,
    ) -> Ledger:
        """A new, empty ledger at `path`, open for writing.

        Args:
            unit: whose data one privacy unit is, `patient` or `image`.
            cap: the lifetime cap; its order is fixed from here on.

        Raises:
            LedgerError: `path` exists (a new ledger would forget what was spent) or cannot be written.
        """
        genesis = {
            "hospital": hospital,
            "unit": unit,
            "adjacency": ADJACENCY,
            "cap": None if cap is None else cap.to_json(),
            "version": __version__,
            "id": secrets.token_hex(16),
            "at": clock().isoformat(timespec="seconds"),
        }
        ChainFile.create(path, genesis)
        return cls.open(path, hospital, clock=clock)

    @classmethod
    def open(
        cls, path: Path, hospital: str | None = None, *, read_only: bool = False, clock: Clock = utc_now
    ) -> Ledger:
        """The ledger at `path`, every entry checked; nobody else can write until it is shut.

        Raises:
            LedgerError: missing, damaged, in use, or another hospital's than `hospital`.
        """
        chain, entries = ChainFile.open(path, read_only=read_only)
        try:
            spending = Spending(entries)
            if hospital is not None and spending.hospital != hospital:
                raise LedgerError(f"{path}: belongs to {spending.hospital!r}, not to {hospital!r}")
        except LedgerError:
            chain.shut()
            raise
        return cls(chain, spending, clock)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shut()

    def __repr__(self) -> str:
        return f"Ledger(path={str(self.path)!r}, hospital={self.hospital!r}, entries={self._chain.length})"

    def open_run(
        self,
        run: str,
        plan_hash: bytes,
        per_round: Sequence[SampledGaussian],
        *,
        rounds: int,
        retry_rounds: int,
        private: bool = True,
        lost: bool = False,
    ) -> None:
        """Fix what every round of `run` releases and how many rounds there may be. Repeating it changes nothing.

        Args:
            plan_hash: 32 bytes.
            per_round: everything that one round releases, such as one event of `local_steps` steps.
            retry_rounds: rounds that may be computed, and are charged, once more.
            private: False when coins are injected or noise is left out; the ledger then says for ever that the run was
                not private.
            lost: the run was on record before a backup was restored; it is put back without asking the cap, which is
                asked again before each charge.

        Raises:
            LedgerError: the run is on record with another declaration.
            BudgetExceeded: rounds and reserve do not fit under the lifetime cap, or the run is not private.
        """
        declaration = Declaration(
            run, of_32_bytes("plan_hash", plan_hash), compose(per_round), rounds, retry_rounds, private
        )
        if rounds < 1 or retry_rounds < 0 or not declaration.per_round:
            raise ValueError(f"rounds={rounds}, retry_rounds={retry_rounds}: need >= 1, >= 0 and something to release")
        with self._mutex:
            known = self._spending.runs.get(run)
            if known is None:
                if not lost:
                    self.check_cap(declaration, declaration.most_rounds)
                self._write("run", declaration.to_json())
            elif known.declaration != declaration:
                raise LedgerError(
                    f"{self.path}: run {run!r} is on record with another plan or mechanism; use a new name"
                )

    def charge(self, run: str, round: int, attempt: int, context: bytes) -> Charge:
        """Pay for computing `round` once. Call it before touching the data.

        Args:
            attempt: at least `next_attempt(run, round)`.
            context: 32 bytes that bind the charge to what will be computed.

        Raises:
            BudgetExceeded: the run's rounds and reserve, or the lifetime cap, are used up; nothing was written.
            LedgerError: the run is unknown, the round was released or has a stored vector, the attempt is not new.
        """
        with self._mutex:
            record = self._record(run)
            declaration = record.declaration
            self._check_attempt(run, round, attempt)
            if record.charged >= declaration.most_rounds:
                raise BudgetExceeded(
                    f"{self.path}: run {run!r} has used its {declaration.rounds} rounds and {declaration.retry_rounds} "
                    "retries; plan a new run with a larger retry_rounds"
                )
            self.check_cap(declaration, 1)
            context_hex = of_32_bytes("context", context).hex()
            self._write("charge", {"run": run, "round": round, "attempt": attempt, "context": context_hex})
            return self._spending.fates_of_round(run, round)[-1].charge

    def _check_attempt(self, run: str, round_number: int, attempt: int) -> None:
        where = f"{self.path}: run {run!r} round {round_number}"
        if round_number < 0:
            raise ValueError(f"round={round_number}: must be >= 0")
        if any(fate.outcome == "released" for fate in self._spending.fates_of_round(run, round_number)):
            raise LedgerError(f"{where} was released already; it cannot be computed again")
        if self.pending(run, round_number) is not None:
            raise LedgerError(f"{where} has a stored vector; send that again instead of computing another")
        if attempt < self.next_attempt(run, round_number):
            raise LedgerError(
                f"{where} attempt {attempt} was charged already; use {self.next_attempt(run, round_number)}"
            )

    def store_update(self, charge: Charge, vector: bytes) -> None:
        """Keep the noised, quantised vector of `charge`, on disk, so that a retry can send the same.

        Raises:
            LedgerError: the charge has a vector or has ended, or the disk is full; then nothing may be sent.
        """
        with self._mutex:
            fate = self._spending.fate(charge)
            if fate.vector_entry is not None or fate.outcome is not None:
                raise LedgerError(
                    f"{self.path}: round {charge.round} has its vector or has ended; compute nothing for it"
                )
            digest = hashlib.sha256(vector).hexdigest()
            body = {"charge": charge.sequence, "vector_sha256": digest, "bytes": len(vector)}
            self._write("stored", body, keep=vector)

    def load_update(self, run: str, round: int) -> bytes | None:
        """The vector that `pending` speaks of, or None.

        Raises:
            LedgerError: it is gone or not the one that was stored. Then `close` the charge as aborted and charge a new
                attempt: what was lost cannot be sent again.
        """
        with self._mutex:
            charge = self.pending(run, round)
            if charge is None:
                return None
            fate = self._spending.fate(charge)
            vector = None if fate.vector_entry is None else self._chain.vector(fate.vector_entry)
            if vector is None or hashlib.sha256(vector).digest() != fate.vector_hash:
                raise LedgerError(
                    f"{self.path}: the stored vector of round {round} is damaged; abort it and charge anew"
                )
            return vector

    def close(self, charge: Charge, outcome: Literal["released", "aborted"], transcript: bytes | None = None) -> None:
        """Say how a round ended and forget its vector; its hash stays. The charge stays whatever the outcome.

        Args:
            outcome: `aborted` when the round is lost for good.
            transcript: 32 bytes, the hash of the round's protocol transcript, where there is one.

        Raises:
            LedgerError: the charge has ended already, or is not of this ledger.
        """
        if outcome not in ("released", "aborted"):
            raise ValueError(f"outcome={outcome!r}: must be 'released' or 'aborted'")
        with self._mutex:
            fate = self._spending.fate(charge)
            if fate.outcome is not None:
                raise LedgerError(f"{self.path}: round {charge.round} has ended already ({fate.outcome})")
            body = {
                "charge": charge.sequence,
                "outcome": outcome,
                "transcript": None if transcript is None else of_32_bytes("transcript", transcript).hex(),
            }
            self._write("closed", body, drop=fate.vector_entry)

    def conclude(self, run: str, outcome: Mapping[str, bytes]) -> None:
        """Keep the hashes of what a run leaves, so that nobody can change it later. Repeating it changes nothing.

        Args:
            outcome: SHA-256, 32 bytes, by name.

        Raises:
            LedgerError: the run is unknown, or was concluded with something else.
        """
        with self._mutex:
            self._record(run)
            known, wanted = self.outcome(run), {name: of_32_bytes(name, each) for name, each in outcome.items()}
            if not known:
                self._write("concluded", {"run": run, "outcome": {name: each.hex() for name, each in wanted.items()}})
            elif known != wanted:
                changed = ", ".join(sorted(name for name in known | wanted if known.get(name) != wanted.get(name)))
                raise LedgerError(f"{self.path}: run {run!r} ended with another {changed}; restore what it left")

    def since(self, run: str) -> Iterator[Account]:
        """The account as it stood after the last entry of `run` itself, and after each that others added since.

        Raises:
            LedgerError: the run is not on record, or the file is damaged.
        """
        self._record(run)
        newest, entries = self._spending.runs[run].newest_entry, self._chain.reload()
        spending = Spending(entries[: newest + 1])
        yield Account(spending)
        for entry in entries[newest + 1 :]:
            spending.apply(entry)
            yield Account(spending)

    def verify(self) -> None:
        """Read the file again and check every link, every meaning and every stored vector.

        Raises:
            LedgerError: naming what is wrong.
        """
        with self._mutex:
            head = self._chain.head
            spending = Spending(self._chain.reload())
            if self._chain.head != head and not self._chain.read_only:
                raise LedgerError(f"{self.path}: changed on disk while it was open; restore a backup and recover it")
            self._spending = spending
            for run in list(spending.runs):
                for round_number in spending.runs[run].fates:
                    self.load_update(run, round_number)
