"""Whether a run's folder and its hospitals' ledgers tell the same story."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from privfm.dp.accounting import epsilon
from privfm.dp.events import compose
from privfm.dp.ledger import Declaration, Ledger
from privfm.errors import LedgerError, VerificationError
from privfm.federation.directory import RunDirectory, RunFacts
from privfm.federation.planning import mechanism_of
from privfm.federation.records import RoundRecord
from privfm.plan import HospitalPlan, Plan

__all__ = ["begun_plan", "declaration_of", "verify_run"]

_ROUNDING = 1e-9  # of an epsilon that went through JSON or another machine's arithmetic


def verify_run(directory: RunDirectory, only: str | None = None) -> dict[str, int]:
    """Return, per hospital, how many finished rounds' transcripts are in its ledger as in the run's records.

    The plan is the one that was begun with, in every ledger too; whoever is in a round's sum has charged it; what a
    ledger released is on record, with the same transcript; spending never went down; no peer saw a ledger further on
    than it is. The last round has no transcript in ledgers before the next begins or the run ends. A hospital that fell
    silent after a repeated attempt was agreed on may have kept the first attempt's transcript, which is told too.

    A run that is going on can be verified: what is written meanwhile is no mismatch.

    Args:
        only: the one hospital to look at.

    Raises:
        VerificationError: the first mismatch, in one line.
        LedgerError: a ledger is missing or damaged.
    """
    plan, facts, records = begun_plan(directory), directory.facts(), _finished(directory)
    _check_never_less(records, directory)
    names = [each.id for each in plan.hospitals]
    seen = _seen(directory, names)
    matched = {}
    for hospital in plan.hospitals:
        if only not in (None, hospital.id):
            continue
        with Ledger.open(directory.ledger(hospital.id), hospital.id, read_only=True) as ledger:
            _check_declared(ledger, plan, hospital, facts)
            _check_counter(ledger, seen.get(hospital.id, {}), directory)
            _check_charged(ledger, plan, facts.run, records)
            _check_released(ledger, facts.run, _finished(directory))
            matched[hospital.id] = _matching(ledger, facts.run, records)
    return matched


def begun_plan(directory: RunDirectory) -> Plan:
    """Return the run's plan; VerificationError when it is not the one that the run was begun with."""
    plan = directory.plan
    if plan.hash().hex() != directory.facts().plan_hash:
        raise VerificationError(f"{directory.root / 'plan.toml'}: not the plan that the run was begun with; restore it")
    return plan


def declaration_of(ledger: Ledger, run: str) -> Declaration:
    """Return what `ledger` declared of `run`; LedgerError when it knows nothing of it."""
    known = {record.declaration.run: record.declaration for record in ledger.runs()}
    if run not in known:
        raise LedgerError(f"{ledger.path}: knows nothing of run {run}; it is another one, or came from a backup")
    return known[run]


def _finished(directory: RunDirectory) -> list[RoundRecord]:
    finished = directory.load_checkpoint().rounds
    records = directory.records()[:finished]
    if [record.round for record in records] != list(range(1, finished + 1)):
        raise VerificationError(f"{directory.root / 'rounds.jsonl'}: does not hold the {finished} finished rounds")
    return records


def _check_never_less(records: Sequence[RoundRecord], directory: RunDirectory) -> None:
    for earlier, later in itertools.pairwise(records):
        for name, spent in earlier.epsilon.items():
            if later.epsilon.get(name, 0.0) < spent * (1 - _ROUNDING):
                raise VerificationError(
                    f"{directory.root / 'rounds.jsonl'}: {name} has spent less after round {later.round} than before"
                )


def _seen(directory: RunDirectory, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return for every hospital which counter each peer saw of it at most."""
    seen: dict[str, dict[str, int]] = {}
    for peer in names:
        with Ledger.open(directory.ledger(peer), peer, read_only=True) as ledger:
            for name in ledger.peers_seen():
                seen.setdefault(name, {})[peer] = ledger.highest_seen(name)
    return seen


def _check_declared(ledger: Ledger, plan: Plan, hospital: HospitalPlan, facts: RunFacts) -> None:
    declared = declaration_of(ledger, facts.run)
    per_round = compose([mechanism_of(plan, hospital).event(plan.steps_per_round)])
    wanted = (facts.plan_hash, per_round, facts.private)
    if (declared.plan_hash.hex(), declared.per_round, declared.private) != wanted:
        raise VerificationError(f"{ledger.path}: declares another plan or mechanism than the run's folder")


def _check_charged(ledger: Ledger, plan: Plan, run: str, records: Sequence[RoundRecord]) -> None:
    recovered = any(record.recovered for record in ledger.runs() if record.declaration.run == run)
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


def _check_counter(ledger: Ledger, seen: Mapping[str, int], directory: RunDirectory) -> None:
    for peer, counter in seen.items():
        if counter > ledger.counter:
            raise VerificationError(
                f"{ledger.path}: stands at counter {ledger.counter}, and {peer} saw {counter}; it came from a backup; "
                f"charge what it lost with: privfm budget recover {directory.root} {ledger.hospital}"
            )


def _check_released(ledger: Ledger, run: str, records: Sequence[RoundRecord]) -> None:
    for number in sorted(ledger.transcripts(run)):
        if number > len(records):
            raise VerificationError(
                f"{ledger.path}: released round {number}, but the run's records end with round {len(records)}"
            )


def _matching(ledger: Ledger, run: str, records: Sequence[RoundRecord]) -> int:
    transcripts, matching = ledger.transcripts(run), 0
    for record in records:
        transcript = transcripts.get(record.round)
        if transcript is None or ledger.hospital not in record.survivors:
            continue
        if transcript.hex() != record.transcript:
            raise VerificationError(
                f"{ledger.path}: its transcript of round {record.round} is not the one in rounds.jsonl; one of the two "
                "was changed, or the coordinator showed hospitals different rounds"
            )
        matching += 1
    return matching
