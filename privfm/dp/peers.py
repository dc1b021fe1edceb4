"""Whether ledgers of several hospitals, side by side, can all be true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TypeVar

from privfm.dp.ledger import Ledger
from privfm.errors import VerificationError

__all__ = ["check_peers"]

Key = TypeVar("Key")


def check_peers(ledgers: Sequence[Ledger]) -> None:
    """Raise VerificationError, naming the first ledger that does not go with another one.

    * A ledger lies under its own hospital's name, and a hospital has one.
    * Hospitals that took part in a run declared the same plan, rounds and retries of it, and the same privacy.
    * A round that two released has one transcript, and a run's end left the same with both.
    * No ledger is older than a peer saw it.
    """
    for ledger in ledgers:
        if ledger.path.stem != ledger.hospital:
            raise VerificationError(
                f"{ledger.path}: is the ledger of {ledger.hospital}; give it back its name, {ledger.hospital}.sqlite"
            )
    for one, other in permutations(ledgers, 2):
        _check_seen(one, other)
        _check_runs(one, other)


def _check_seen(ledger: Ledger, peer: Ledger) -> None:
    seen = peer.highest_seen(ledger.hospital)
    if ledger.counter < seen:
        raise VerificationError(
            f"{ledger.path}: stands at counter {ledger.counter}, and {peer.hospital} saw {seen}; it came from a "
            f"backup; charge what it lost with: privfm budget recover RUN {ledger.hospital}"
        )


def _check_runs(one: Ledger, other: Ledger) -> None:
    theirs = {record.declaration.run: record.declaration for record in other.runs()}
    for declared in (record.declaration for record in one.runs()):
        run = declared.run
        if run not in theirs:
            continue
        if any(getattr(declared, name) != getattr(theirs[run], name) for name in _SHARED):
            raise VerificationError(f"{one.path}: declares run {run} otherwise than {other.path} does")
        if _differ(one.transcripts(run), other.transcripts(run)):
            raise VerificationError(f"{one.path}: has another transcript of a round of run {run} than {other.path}")
        if _differ(one.outcome(run), other.outcome(run)):
            raise VerificationError(f"{one.path}: run {run} left something else by it than by {other.path}")


_SHARED = ("plan_hash", "rounds", "retry_rounds", "private")


def _differ(ours: Mapping[Key, bytes], theirs: Mapping[Key, bytes]) -> bool:
    """Whether two tables disagree about something that both know."""
    return any(theirs.get(name, value) != value for name, value in ours.items())
