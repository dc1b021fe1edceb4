"""Which audits there are, and what each needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from privfm.data import ImageSet, load_images
from privfm.errors import InputError, PrivfmError, RunError
from privfm.federation.cohort import Cohort, gather_cohort
from privfm.federation.directory import RunDirectory
from privfm.federation.forgotten import read_forgotten
from privfm.federation.network import Learner, load_network
from privfm.federation.observer import Observer
from privfm.federation.stating import BUILT_IN
from privfm.federation.verifying import verify_run
from privfm.models import merged_state, read_tensors
from privfm.plan import Plan
from privfm_attacks.canaries import audit_canaries
from privfm_attacks.coordinator_log import read_log
from privfm_attacks.forgetting import ForgetEffort, audit_forgetting, pair_of
from privfm_attacks.measuring import Effort
from privfm_attacks.mechanism import audit_mechanism
from privfm_attacks.membership import MembershipEffort, audit_membership
from privfm_attacks.participation import Participation
from privfm_attacks.property import audit_property
from privfm_attacks.reconstruction import ReconstructionEffort, audit_reconstruction
from privfm_attacks.transcript import audit_transcript
from privfm_attacks.verdicts import AuditResult, Finding, Verdict, not_done

__all__ = ["AUDITS", "QUICK_MEMBERSHIP", "READS_IMAGES", "Audit", "Subject", "of_people"]


@dataclass(frozen=True)
class Subject:
    """What is audited.

    Args:
        plan: complete.
        start: gives the network that training starts with.
        run: what the plan became; None before it is run.
        quick: whether minutes count.
        asked: names of the audits that were asked for one by one.
        observer: hears of the progress.
        others: a folder of people whom the run was not trained on; by default those whom it held out.
    """

    plan: Plan
    start: Callable[[], Learner]
    run: RunDirectory | None
    quick: bool
    asked: frozenset[str]
    observer: Observer
    others: Path | None = None


@dataclass(frozen=True)
class Audit:
    """One audit.

    Args:
        attempt: makes it.
        of_plans: whether a plan alone can be audited.
        seconds, quick_seconds: that it takes on two cores for the default run, whole and with `--quick`; a rough guide.
        left_out: what `--quick` does without.
    """

    attempt: Callable[[Subject], AuditResult]
    of_plans: bool
    seconds: int
    quick_seconds: int
    left_out: str = ""


READS_IMAGES = ("membership", "forget")


def of_people(plan: Plan) -> bool:
    """Whether images are a hospital's own: whatever is told of them, names of files too, stays there."""
    return plan.data.source not in BUILT_IN


def _mechanism(subject: Subject) -> AuditResult:
    learner = subject.start()
    learner.network.train()
    return audit_mechanism(subject.plan, learner)


def _run_of(subject: Subject) -> RunDirectory:
    if subject.run is None:
        raise ValueError("subject.run=None: this audit needs a run")
    return subject.run


def _ledgers(subject: Subject) -> AuditResult:
    run = _run_of(subject)
    verdict, finding = _verified(run)
    return AuditResult(
        name="ledgers",
        verdict=verdict,
        sentence="every release on record was charged, as declared, and ledgers match what the run left"
        if finding.passed
        else f"could not be checked: {finding.detail}"
        if verdict is Verdict.INCONCLUSIVE
        else f"ledgers and the run's files tell different stories: {finding.detail}",
        attacker="anybody who can write to the run's folder after the fact",
        null_means="It does not show that nothing was released beside the protocol.",
        findings=(finding,),
        figures={"hospitals": len(subject.plan.hospitals)},
    )


def _verified(run: RunDirectory) -> tuple[Verdict, Finding]:
    needed = [run.root / "rounds.jsonl", *(run.ledger(each.id) for each in run.plan.hospitals)]
    missing = next((path for path in needed if not path.exists()), None)
    if missing is not None:
        return Verdict.INCONCLUSIVE, Finding("ledgers", False, f"{missing}: is not there; restore it")
    try:
        rounds = verify_run(run)
    except RunError as error:
        return Verdict.INCONCLUSIVE, Finding("ledgers", False, str(error))
    except PrivfmError as error:
        return Verdict.LEAK, Finding("ledgers", False, str(error))
    told = ", ".join(f"{name} {count}" for name, count in rounds.items())
    return Verdict.NO_LEAK_DETECTED, Finding("ledgers", True, f"rounds as in the run's records: {told}")


def _property(subject: Subject) -> AuditResult:
    effort, own = Effort(federations=10) if subject.quick else Effort(), None
    if subject.run is not None:
        sums = tuple(frozenset(record.survivors) for record in subject.run.records())
        own = Participation(tuple(each.id for each in subject.plan.hospitals), sums)
    return audit_property(subject.plan, own, effort)


QUICK_MEMBERSHIP = MembershipEffort(patients=260, images=2, draws=4, control_steps=1_500, control_seconds=75.0)


def _membership(subject: Subject) -> AuditResult:
    run, plan = _run_of(subject), subject.plan
    if of_people(plan) and "membership" not in subject.asked:
        return not_done(
            "membership",
            "it reads patients' images in the clear; a hospital asks for it by name: --only membership, with "
            "--held-out DIR where the run held nobody out",
        )
    effort = QUICK_MEMBERSHIP if subject.quick else MembershipEffort()
    learner = load_network(run.root, "network.safetensors")
    _check_published(run, learner)
    cohort = gather_cohort(plan, read_forgotten(run))
    others = None if subject.others is None else _others(subject.others, plan, cohort)
    return audit_membership(learner, subject.start(), cohort, effort, subject.observer.progress, others)


def _check_published(run: RunDirectory, learner: Learner) -> None:
    """Raise RunError when the model that would be given out is not the encoder that is looked at."""
    path, own = run.root / "model.safetensors", merged_state(learner.network.backbone.timm)
    given = read_tensors(path)
    if given.keys() != own.keys() or not all(_alike(given[name], value) for name, value in own.items()):
        raise RunError(f"{path}: is not the encoder that this run trained; restore it before anything is published")


def _alike(one: Tensor, two: Tensor) -> bool:
    """But for rounding: adapters may have been merged on another device."""
    return one.shape == two.shape and torch.allclose(one, two, rtol=1e-4, atol=1e-6)


def _others(folder: Path, plan: Plan, cohort: Cohort) -> ImageSet:
    found = load_images(str(folder), image_size=plan.data.image_size, channels=plan.data.channels)
    both = set(found.patients) & {patient for images in cohort.images.values() for patient in images.patients}
    if both:
        raise InputError(f"--held-out {folder}: {min(both)} was trained on; name patients apart, or leave them out")
    return found


def _forget(subject: Subject) -> AuditResult:
    run, plan = _run_of(subject), subject.plan
    if of_people(plan) and "forget" not in subject.asked:
        return not_done(
            "forget",
            "it reads images of patients, of who asked out too; a hospital asks for it by name: --only forget",
        )
    cohort = gather_cohort(plan, read_forgotten(run))
    effort = ForgetEffort(seconds=10.0) if subject.quick else ForgetEffort()
    return audit_forgetting(subject.start(), cohort, pair_of(run), effort, subject.observer.progress)


def _reconstruction(subject: Subject) -> AuditResult:
    learner = subject.start()
    learner.network.train()
    effort = ReconstructionEffort(images=10, noised=50, iterated=0) if subject.quick else None
    return audit_reconstruction(subject.plan, learner, effort)


AUDITS = {
    "mechanism": Audit(_mechanism, True, 20, 20),
    "canaries": Audit(lambda subject: audit_canaries(subject.plan), True, 20, 20),
    "membership": Audit(
        _membership,
        False,
        180,
        60,
        "membership: 260 patients in place of 400, half of their images and views, a shorter control",
    ),
    "property": Audit(
        _property,
        True,
        120,
        30,
        "property: 10 federations in place of 20",
    ),
    "reconstruction": Audit(
        _reconstruction,
        True,
        90,
        30,
        "reconstruction: gradient inversion, half of the images",
    ),
    "forget": Audit(
        _forget,
        False,
        60,
        30,
        "forget: half of the time for each model of its control",
    ),
    "transcript": Audit(lambda subject: audit_transcript(read_log(_run_of(subject))), False, 5, 5),
    "ledgers": Audit(_ledgers, False, 5, 5),
}
"""In the order in which they run."""
