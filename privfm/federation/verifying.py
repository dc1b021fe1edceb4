"""Whether a run's folder and its hospitals' ledgers tell the same story."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

from privfm.dp.accounting import epsilon
from privfm.dp.events import compose
from privfm.dp.ledger import Ledger
from privfm.dp.peers import check_seen
from privfm.errors import VerificationError
from privfm.federation.directory import RunDirectory, RunFacts, begun_plan, finished_rounds
from privfm.federation.leaving import check_leaving
from privfm.federation.ledgers import declaration_of
from privfm.federation.planning import mechanism_of, threshold_of
from privfm.federation.records import RoundRecord
from privfm.ids import HospitalId
from privfm.plan import HospitalPlan, Plan

__all__ = ["begun_plan", "verify_run"]

_ROUNDING = 1e-9  # of an epsilon that went through JSON or another machine's arithmetic


def verify_run(directory: RunDirectory, only: str | None = None) -> dict[str, int]:
    """Return, per hospital, how many finished rounds' transcripts are in its ledger as in the run's records.

    The plan is the one that was begun with, in every ledger too; whoever is in a round's sum has charged it, for the
    model that the round started from; what a ledger released is on record, with the same transcript; spending never
    went down; no peer saw a ledger further on than it is, or with an entry that it has no longer; and once the run is
    over, its files are those whose hashes the ledgers kept. The last round has no transcript in ledgers before the next
    begins or the run ends. A hospital that fell silent after a repeated attempt was agreed on may have kept the first
    attempt's transcript, which is told too. What the run leaves beside that is checked where all ledgers are looked at:
    see `check_leaving`.

    A run that is going on can be verified: what is written meanwhile is no mismatch.

    Args:
        only: the one hospital to look at.

    Raises:
        VerificationError: the first mismatch, in one line.
        LedgerError: a ledger is missing or damaged.
    """
    plan, records = begun_plan(directory), finished_rounds(directory)
    _check_cohorts(records, plan, directory)
    _check_never_less(records, directory)
    names = [each.id for each in plan.hospitals]
    seen = _seen(directory, names)
    with ExitStack() as stack:
        ledgers = {
            name: stack.enter_context(Ledger.open(directory.ledger(name), name, read_only=True))
            for name in names
            if only in (None, name)
        }
        matched = {
            name: _check_ledger(ledger, directory, plan, records, seen.get(name, {}))
            for name, ledger in ledgers.items()
        }
        if only is None:
            check_leaving(directory, plan, records, ledgers)
    return matched


def _check_ledger(
    ledger: Ledger,
    directory: RunDirectory,
    plan: Plan,
    records: Sequence[RoundRecord],
    seen: Mapping[str, tuple[int, bytes]],
) -> int:
    """Return how many transcripts match."""
    facts = directory.facts()
    _check_declared(ledger, plan, plan.hospital(HospitalId(ledger.hospital)), facts)
    for peer, mark in seen.items():
        check_seen(ledger, peer, *mark, run=str(directory.root))
    _check_charged(ledger, plan, facts.run, records)
    _check_released(ledger, facts.run, finished_rounds(directory))
    matched = _matching(ledger, facts.run, records, directory)
    _check_models(ledger, facts.run, records, directory)
    _check_concluded(ledger, facts.run, directory)
    return matched


def _check_cohorts(records: Sequence[RoundRecord], plan: Plan, directory: RunDirectory) -> None:
    """Whom a round names are hospitals of the plan, enough of them, and the sum is of some that began."""
    everybody = {each.id for each in plan.hospitals}
    for record in records:
        cohort, survivors = set(record.cohort), set(record.survivors)
        if not survivors <= cohort <= everybody or len(survivors) < threshold_of(plan):
            raise VerificationError(
                f"{directory.root / 'rounds.jsonl'}: round {record.round} names other hospitals than the plan, or too "
                "few; restore the file"
            )


def _check_never_less(records: Sequence[RoundRecord], directory: RunDirectory) -> None:
    for earlier, later in itertools.pairwise(records):
        for name, spent in earlier.epsilon.items():
            if later.epsilon.get(name, 0.0) < spent * (1 - _ROUNDING):
                raise VerificationError(
                    f"{directory.root / 'rounds.jsonl'}: {name} has spent less after round {later.round} than before"
                )


def _seen(directory: RunDirectory, names: Iterable[str]) -> dict[str, dict[str, tuple[int, bytes]]]:
    """Return for every hospital which counter each peer saw of it at most, and its ledger's head then."""
    seen: dict[str, dict[str, tuple[int, bytes]]] = {}
    for peer in names:
        with Ledger.open(directory.ledger(peer), peer, read_only=True) as ledger:
            for name in ledger.peers_seen():
                seen.setdefault(name, {})[peer] = ledger.last_seen(name)
    return seen


def _check_declared(ledger: Ledger, plan: Plan, hospital: HospitalPlan, facts: RunFacts) -> None:
    declared = declaration_of(ledger, facts.run)
    per_round = compose([mechanism_of(plan, hospital).event(plan.steps_per_round)])
    wanted = (facts.plan_hash, per_round, facts.private)
    if (declared.plan_hash.hex(), declared.per_round, declared.private) != wanted:
        raise VerificationError(f"{ledger.path}: declares another plan or mechanism than the run's folder")


def _check_charged(ledger: Ledger, plan: Plan, run: str, records: Sequence[RoundRecord]) -> None:
    recovered = _recovered(ledger, run)
    for record in records:
        summed = ledger.hospital in record.survivors
        if summed and not recovered and ledger.next_attempt(run, record.round) == 0:
            raise VerificationError(f"{ledger.path}: never charged round {record.round}, whose sum it is in")
    spent = epsilon(ledger.events(run), plan.privacy.delta)
    on_record = records[-1].epsilon.get(ledger.hospital, 0.0) if records else 0.0
    if spent < on_record * (1 - _ROUNDING):
        raise VerificationError(
            f"{ledger.path}: has charged epsilon {spent:.3f} to this run, which had spent {on_record:.3f} by round "
            f"{records[-1].round}; it came from a backup"
        )


def _check_released(ledger: Ledger, run: str, records: Sequence[RoundRecord]) -> None:
    for number in sorted(ledger.transcripts(run)):
        if number > len(records):
            raise VerificationError(
                f"{ledger.path}: released round {number}, but the run's records end with round {len(records)}"
            )


def _matching(ledger: Ledger, run: str, records: Sequence[RoundRecord], directory: RunDirectory) -> int:
    transcripts, matching = ledger.transcripts(run), 0
    for record in records:
        transcript = transcripts.get(record.round)
        if ledger.hospital not in record.survivors:
            if transcript is not None and transcript.hex() == record.transcript:
                raise VerificationError(
                    f"{directory.root / 'rounds.jsonl'}: round {record.round} leaves {ledger.hospital} out, which is "
                    "in its sum by its ledger"
                )
            continue
        if transcript is None:
            continue
        if transcript.hex() != record.transcript:
            raise VerificationError(
                f"{ledger.path}: its transcript of round {record.round} is not the one in rounds.jsonl; one of the two "
                "was changed, or the coordinator showed hospitals different rounds"
            )
        matching += 1
    return matching


def _check_models(ledger: Ledger, run: str, records: Sequence[RoundRecord], directory: RunDirectory) -> None:
    """Compare the hash of each round's model with what the hospital's charge for the round is bound to."""
    for record in records:
        bound = {context.hex() for context in ledger.contexts(run, record.round)}
        if bound and ledger.hospital in record.survivors and record.model_hash not in bound:
            raise VerificationError(
                f"{directory.root / 'rounds.jsonl'}: round {record.round} started from another model by the ledger "
                f"{ledger.path}"
            )


def _check_concluded(ledger: Ledger, run: str, directory: RunDirectory) -> None:
    """Compare the files that nothing may change after the end with the hashes that the ledger kept of them."""
    kept = ledger.outcome(run)
    if not kept and (directory.root / "result.json").exists() and not _recovered(ledger, run):
        raise VerificationError(
            f"{ledger.path}: does not know that the run is over, though it has a result; it came from a backup"
        )
    for name, digest in kept.items():
        if hashlib.sha256(directory.read_bytes(name)).digest() != digest:
            raise VerificationError(
                f"{directory.root / name}: not what it was at the run's end, by {ledger.path}; restore it"
            )


def _recovered(ledger: Ledger, run: str) -> bool:
    return any(record.recovered for record in ledger.runs() if record.declaration.run == run)
