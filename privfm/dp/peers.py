"""Whether ledgers of several hospitals, side by side, can all be true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TypeVar

from privfm.dp.ledger import Ledger
from privfm.errors import VerificationError

__all__ = ["check_heads", "check_peers", "check_seen"]

Key = TypeVar("Key")


def check_peers(ledgers: Sequence[Ledger]) -> None:
    """Raise VerificationError, naming the first ledger that does not go with another one.

    * A ledger lies under its own hospital's name, and a hospital has one.
    * Hospitals that took part in a run declared the same plan, rounds and retries of it, and the same privacy.
    * A round that two released has one transcript, and a run's end left the same with both.
    * No ledger is older than a peer saw it, and what a peer saw is still in it.

    A run may be going on meanwhile: ledgers are read again once it is known what their peers saw.
    """
    for ledger in ledgers:
        if ledger.path.stem != ledger.hospital:
            raise VerificationError(
                f"{ledger.path}: is the ledger of {ledger.hospital}; give it back its name, {ledger.hospital}.sqlite"
            )
    for ledger in ledgers:
        ledger.verify()
    check_heads(ledgers, run="RUN")
    for one, other in permutations(ledgers, 2):
        _check_runs(one, other)


def check_heads(ledgers: Sequence[Ledger], *, run: str) -> None:
    """Raise VerificationError when a ledger is older than a peer saw it, or lacks what a peer saw.

    Args:
        run: what to recover, for the message.
    """
    seen = {(one, other): other.last_seen(one.hospital) for one, other in permutations(ledgers, 2)}
    for (one, other), mark in seen.items():
        check_seen(one, other.hospital, *mark, run=run)


def check_seen(ledger: Ledger, peer: str, counter: int, head: bytes, *, run: str) -> None:
    """Raise VerificationError when a ledger is not, or no longer, the one that a peer saw at `counter`.

    Args:
        run: what to recover, for the message.
    """
    if ledger.counter < counter:
        raise VerificationError(
            f"{ledger.path}: stands at counter {ledger.counter}, and {peer} saw {counter}; it came from a backup; "
            f"charge what it lost with: privfm budget recover {run} {ledger.hospital}"
        )
    if ledger.lacks(counter, head):
        raise VerificationError(
            f"{ledger.path}: lacks an entry that {peer} saw at counter {counter}; it was written anew, or went on from "
            "a backup; put the right one back"
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
