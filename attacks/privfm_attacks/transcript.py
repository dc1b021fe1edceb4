"""The transcript audit: what a coordinator's own log would let it, or anybody who gets it, find out.

Everything here is exact: names, hashes and keys are compared, ranks are those of whole numbers. What no run that keeps
the protocol can show is a LEAK: a sum over fewer hospitals than the threshold, a round summed twice, a key or a
transcript that comes again, a cohort of strangers or newcomers, a model made to lay images open.

Combinations of several rounds' sums that leave few hospitals are no such thing. A single drop-out makes one, and the
protocol does not promise to prevent it (`docs/protocol.md`). What is left carries that hospital's own noise, so its
patients keep their guarantee against whoever combines sums. So the audit says how few can be left, and calls it a leak
only where there is no noise, or its coins are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from privfm.federation.imprints import imprints
from privfm.federation.records import RoundRecord
from privfm_attacks.coordinator_log import Log
from privfm_attacks.participation import Participation, Search, noise_factor, search
from privfm_attacks.planting import planted
from privfm_attacks.verdicts import AuditResult, Finding, Verdict

__all__ = ["audit_transcript"]

HONEST = 2
"""Hospitals beside one that a sum must hold whom an attacker does not run."""


def audit_transcript(log: Log) -> AuditResult:
    """Return the audit of a log, and of copies of it in which something is planted that must be found."""
    found = search(log.participation)
    findings = (*_findings(log, found), *_controls(log))
    broken = [each for each in findings if not each.passed and each.check != "control"]
    fewest = 0 if found.smallest is None else len(found.smallest.hospitals)
    return AuditResult(
        name="transcript",
        verdict=_verdict(findings, broken),
        sentence="; ".join([*(each.detail for each in broken), _isolated(log, found)]),
        attacker="one who reads the coordinator's log: every released sum, who was in it, the keys that were shown and "
        "the models that are kept; and who may be the coordinator",
        null_means="It does not show that hospitals are run by different people, nor that a layer is no trap which "
        "hides better, nor, where hospitals' own notes are not at hand, that a model between first and last was "
        "sound: the log has its hash alone.",
        findings=findings,
        figures={
            "sums": len(log.records),
            "rank": log.participation.rank,
            "smallest_isolated": fewest,
            "proved": found.proved,
            "threshold": log.threshold,
            "controls": sum(each.check == "control" for each in findings),
        },
    )


def _verdict(findings: tuple[Finding, ...], broken: list[Finding]) -> Verdict:
    if broken:
        return Verdict.LEAK
    return Verdict.NO_LEAK_DETECTED if all(each.passed for each in findings) else Verdict.INCONCLUSIVE


Check = Callable[[Log], Iterator[str]]


def _findings(log: Log, found: Search) -> Iterator[Finding]:
    """Every check of a log, with what is wrong or that nothing is."""
    again = sum(record.attempt > 0 for record in log.records)
    checks: dict[str, tuple[Check, str]] = {
        "sums": (_small_sums, f"every sum holds at least {log.threshold} hospitals of its cohort"),
        "once": (
            _repeats,
            f"{len(log.records)} rounds, {again} of them begun again, were summed once each",
        ),
        "masks": (_mask_reuse, f"{_keys(log)} keys and {len(log.records)} transcripts are all different"),
        "cohorts": (_sybils, "nobody is in a sum among strangers or newcomers alone"),
        "models": (_bad_models, f"{', '.join(log.models) or 'no model'}: no rows repeat, none lost its directions"),
    }
    for name, (check, sound) in checks.items():
        wrong = tuple(check(log))
        yield Finding(name, not wrong, "; ".join(wrong) or sound)
    few = found.smallest is not None and len(found.smallest.hospitals) < log.threshold
    yield Finding("combinations", log.noised or not few, _isolated(log, found))


def _small_sums(log: Log) -> Iterator[str]:
    for record in log.records:
        count = len(set(record.survivors))
        if count < max(log.threshold, log.plan.secagg.max_corrupt + HONEST):
            yield f"round {record.round}: the sum holds {count} hospitals, and the threshold is {log.threshold}"
        absent = sorted(set(record.survivors) - set(record.cohort))
        if absent:
            yield f"round {record.round}: {', '.join(absent)} in the sum, but not in the cohort"


def _repeats(log: Log) -> Iterator[str]:
    """A vector in two sums, over different survivors, is the difference of the two.

    A coordinator that crashed between a record and the checkpoint has one record more than rounds are finished. That
    is legitimate: hospitals mask that round's vectors again for the same survivors alone, and its new record takes the
    place of the old one. So whatever crashed, no round has two records, and none lies further ahead.
    """
    ahead = max((record.round for record in log.records), default=0)
    if log.finished is not None and ahead > min(log.finished + 1, log.plan.federation.rounds):
        yield f"round {ahead} was summed, and of {log.plan.federation.rounds} the run has finished {log.finished}"
    for name, values in (("round", _by(log, "round")), ("the model of round", _by(log, "model_hash"))):
        for records in values:
            sums = " and ".join("+".join(record.survivors) for record in records)
            yield f"{name} {records[0].round} was summed {len(records)} times: {sums}"


def _by(log: Log, field: str) -> list[list[RoundRecord]]:
    """Records that have a field in common."""
    groups: dict[object, list[RoundRecord]] = {}
    for record in log.records:
        groups.setdefault(getattr(record, field), []).append(record)
    return [records for records in groups.values() if len(records) > 1]


def _mask_reuse(log: Log) -> Iterator[str]:
    """A transcript covers every key of a round, so an equal one means equal masks."""
    for records in _by(log, "transcript"):
        rounds = " and ".join(str(record.round) for record in records)
        yield f"rounds {rounds} have one transcript, so the same masks"
    shown: dict[str, list[str]] = {}
    for record in log.records:
        for name, key in record.mask_keys.items():
            shown.setdefault(key, []).append(f"{name} in round {record.round}")
    for places in shown.values():
        if len(places) > 1:
            yield f"one key masks for {' and '.join(places)}"


def _keys(log: Log) -> int:
    return sum(len(record.mask_keys) for record in log.records)


def _sybils(log: Log) -> Iterator[str]:
    """Sums in which somebody may be alone among hospitals that one attacker runs.

    In a run that keeps the protocol two sums share more than half of their hospitals, so neither newcomers nor
    hospitals that came and went together can leave fewer than two others.
    """
    planned, seen = {str(hospital.id) for hospital in log.plan.hospitals}, set[str]()
    together = _companions(log.participation)
    for record in log.records:
        members = set(record.survivors)
        strangers = sorted((members | set(record.cohort)) - (planned & log.members))
        if strangers:
            yield f"round {record.round}: {', '.join(strangers)} not in plan and roster"
        if seen and members - seen and len(members & seen) < HONEST:
            yield f"round {record.round}: {len(members - seen)} of {len(members)} hospitals are new"
        seen |= members
        for group in together:
            if group <= members and len(members - group) < HONEST:
                yield f"round {record.round}: {'+'.join(sorted(group))} always came together, and leave fewer than 2"


def _companions(participation: Participation) -> list[frozenset[str]]:
    """Groups of hospitals that were absent from some sums, and from the same ones."""
    columns = {
        name: participation.matrix[:, place].tobytes()
        for place, name in enumerate(participation.hospitals)
        if not participation.matrix[:, place].all()
    }
    several = [column for column, count in Counter(columns.values()).items() if count > 1]
    return [frozenset(name for name, column in columns.items() if column == each) for each in several]


def _bad_models(log: Log) -> Iterator[str]:
    for name, state in log.models.items():
        for line in imprints(state):
            yield f"{name}: {line}"
    yield from log.noted
    if log.first is False:
        yield "the model that round 1 was bound to is not the one that is kept"
    if log.last is False:
        yield "the model that is given out is not the one that the rounds led to"


def _isolated(log: Log, found: Search) -> str:
    """The audit's answer: how few hospitals could be isolated, how, and what that is worth."""
    smallest = found.smallest
    if smallest is None:
        return "no sum was released"
    names = smallest.hospitals
    proof = "" if found.complete else f" (fewer than {found.proved} are ruled out)"
    if len(names) >= log.threshold:
        return f"no combination of the sums leaves fewer than {len(names)} hospitals{proof}; threshold {log.threshold}"
    left = f"the smallest cohort that sums isolate is {len(names)}, of a threshold of {log.threshold}{proof}: "
    left += f"{smallest} leaves {', '.join(names)}, were updates alike in every round"
    if not log.noised:
        return f"{left}; no noise hides it, for there is none or its coins were injected"
    price = f", {noise_factor(log.participation, names[0]):.1f} times its noise when seen alone" * (len(names) == 1)
    return f"{left}; what is left still carries the noise that its patients' guarantee rests on{price}"


def _controls(log: Log) -> Iterator[Finding]:
    """Plant each case into a copy of the log, and see it found."""
    for case, check, copy in planted(log):
        findings = {each.check: each for each in _findings(copy, search(copy.participation))}
        yield Finding("control", not findings[check].passed, f"{case}, planted in a copy of the log: {check}")
