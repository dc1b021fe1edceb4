"""Audits of a run's folder: which there are, what they make of it, and audit.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from privfm import __version__
from privfm.errors import InputError, VerificationError
from privfm.federation.directory import RunDirectory
from privfm.federation.network import load_network
from privfm.federation.verifying import begun_plan, verify_run
from privfm.files import write_atomic
from privfm_attacks.canaries import audit_canaries
from privfm_attacks.coordinator_log import read_log
from privfm_attacks.mechanism import audit_mechanism
from privfm_attacks.participation import Participation
from privfm_attacks.property import audit_property
from privfm_attacks.transcript import audit_transcript
from privfm_attacks.verdicts import AuditResult, Finding, Verdict

__all__ = ["AUDITS", "FILE", "audit_run"]

FILE = "audit.json"


def _mechanism(directory: RunDirectory) -> AuditResult:
    learner = load_network(directory.root, "start.safetensors")
    learner.network.train()
    return audit_mechanism(begun_plan(directory), learner)


def _ledgers(directory: RunDirectory) -> AuditResult:
    findings = tuple(_verified(directory))
    whole = all(finding.passed for finding in findings)
    return AuditResult(
        name="ledgers",
        verdict=Verdict.NO_LEAK_DETECTED if whole else Verdict.LEAK,
        sentence="every release on record was charged, as declared, and ledgers match the run's records"
        if whole
        else "ledgers and records tell different stories: " + "; ".join(f.detail for f in findings if not f.passed),
        attacker="anybody who can read the run's folder after the fact",
        null_means="It does not show that nothing was released beside the protocol.",
        findings=findings,
        figures={"hospitals": len(findings)},
    )


def _verified(directory: RunDirectory) -> Iterator[Finding]:
    for hospital in begun_plan(directory).hospitals:
        try:
            rounds = verify_run(directory, hospital.id)[hospital.id]
            yield Finding("ledger", True, f"{hospital.id}: whole, {rounds} rounds as in the run's records")
        except VerificationError as error:
            yield Finding("ledger", False, f"{hospital.id}: {error}")


def _property(directory: RunDirectory) -> AuditResult:
    plan = begun_plan(directory)
    sums = tuple(frozenset(record.survivors) for record in directory.records())
    return audit_property(plan, Participation(tuple(hospital.id for hospital in plan.hospitals), sums))


AUDITS: dict[str, Callable[[RunDirectory], AuditResult]] = {
    "mechanism": _mechanism,
    "canaries": lambda directory: audit_canaries(begun_plan(directory)),
    "ledgers": _ledgers,
    "property": _property,
    "transcript": lambda directory: audit_transcript(read_log(directory)),
}
"""In the order in which they run."""


def audit_run(
    root: Path, only: Sequence[str] = (), begun: Callable[[str], None] = lambda name: None
) -> tuple[AuditResult, ...]:
    """Audit a run and write `audit.json` into its folder.

    Args:
        root: the run's folder.
        only: names of audits; all by default.
        begun: told the name of each audit before it begins.

    Raises:
        InputError: an audit of that name does not exist.
        RunError: the folder is no run's, or damaged.
        VerificationError: the plan in the folder is not the one that the run was begun with.
    """
    unknown = sorted(set(only) - set(AUDITS))
    if unknown:
        raise InputError(f"--only {unknown[0]}: no such audit; there are {', '.join(AUDITS)}")
    directory, results = RunDirectory.existing(root), []
    for name, audit in AUDITS.items():
        if name in only or not only:
            begun(name)
            results.append(audit(directory))
    content = {"version": 1, "privfm_version": __version__, "audits": [result.to_json() for result in results]}
    write_atomic(root / FILE, json.dumps(content, indent=2, allow_nan=False).encode())
    return tuple(results)
