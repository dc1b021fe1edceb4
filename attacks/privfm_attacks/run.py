"""Which audits there are, and what each needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from privfm import __version__
from privfm.data import ImageSet, load_images
from privfm.errors import InputError, PrivfmError, RunError
from privfm.federation.cohort import Cohort, gather_cohort
from privfm.federation.directory import RunDirectory, RunFacts
from privfm.federation.forgotten import read_forgotten, read_origin
from privfm.federation.network import Learner, build_learner, load_network
from privfm.federation.observer import Observer
from privfm.federation.planning import complete_plan
from privfm.federation.stating import BUILT_IN
from privfm.federation.verifying import begun_plan, verify_run
from privfm.models import merged_state, read_tensors
from privfm.plan import Plan
from privfm_attacks.advice import ON_LEAK
from privfm_attacks.canaries import audit_canaries
from privfm_attacks.coordinator_log import read_log
from privfm_attacks.forgetting import ForgetEffort, audit_forgetting, pair_of
from privfm_attacks.measuring import Effort
from privfm_attacks.mechanism import audit_mechanism
from privfm_attacks.membership import MembershipEffort, audit_membership
from privfm_attacks.model_file import ModelFile, audit_model
from privfm_attacks.participation import Participation
from privfm_attacks.property import audit_property
from privfm_attacks.reconstruction import ReconstructionEffort, audit_reconstruction
from privfm_attacks.report import LOCAL, Report, keep_report
from privfm_attacks.transcript import audit_transcript
from privfm_attacks.verdicts import AuditResult, Finding, Verdict, not_done

__all__ = ["AUDITS", "Audit", "Subject", "audit_file", "audit_run", "rehearse"]


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


_QUICK_MEMBERSHIP = MembershipEffort(patients=260, images=2, draws=4, control_steps=1_500, control_seconds=75.0)


def _membership(subject: Subject) -> AuditResult:
    run, plan = _run_of(subject), subject.plan
    if _of_people(plan) and "membership" not in subject.asked:
        return not_done(
            "membership",
            "it reads patients' images in the clear; a hospital asks for it by name: --only membership, with "
            "--held-out DIR where the run held nobody out",
        )
    effort = _QUICK_MEMBERSHIP if subject.quick else MembershipEffort()
    learner = load_network(run.root, "network.safetensors")
    _check_published(run, learner)
    cohort = gather_cohort(plan, read_forgotten(run))
    others = None if subject.others is None else _others(subject.others, plan, cohort)
    result = audit_membership(learner, subject.start(), cohort, effort, subject.observer.progress, others)
    return replace(result, local=result.local or others is not None)


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
    if _of_people(plan) and "forget" not in subject.asked:
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


def audit_run(
    root: Path,
    only: Sequence[str] = (),
    *,
    quick: bool = False,
    observer: Observer | None = None,
    others: Path | None = None,
) -> Report:
    """Audit a run and write `audit.json` into its folder.

    Args:
        root: the run's folder.
        only: names of audits; by default all, `forget` among them where somebody asked out.
        quick: do what takes minutes with fewer images and steps, and say what was left out.
        observer: hears of the progress.
        others: a folder of people whom the run was not trained on, for `membership`.

    Returns:
        What these audits found, and what others had found before.

    Raises:
        InputError: an audit of that name does not exist, or the folder is no run's.
        RunError: the folder's plan or facts are damaged.
        VerificationError: the plan in the folder is not the one that the run was begun with.
    """
    _check_names(only, AUDITS)
    run, observer = RunDirectory.existing(root), observer or Observer()
    if others is not None and not others.exists():
        raise InputError(f"--held-out {others}: no such folder")
    with _not_too_deep(root):
        plan, facts = _plan_of(run), run.facts()
        names = [name for name in AUDITS if name in (only or _usual(run))]
    start = partial(load_network, root, "start.safetensors")
    subject = Subject(plan, start, run, quick, frozenset(only), observer, others)
    report = replace(_made(subject, names), notices=_notices(facts, names))
    return keep_report(report, root, list(AUDITS), facts.run)


@contextmanager
def _not_too_deep(root: Path) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise RunError(f"{root}: a file is nested as no run writes it; the run's folder is damaged") from None


def _plan_of(run: RunDirectory) -> Plan:
    if not (run.root / "plan.toml").exists():
        raise RunError(
            f"{run.root / 'plan.toml'}: is not there; restore it, or audit the model alone, moved elsewhere, with: "
            "privfm audit MODEL --data DIR --held-out DIR"
        )
    return begun_plan(run)


def audit_file(model: ModelFile, *, quick: bool = False, observer: Observer | None = None) -> Report:
    """Audit a model of which there is no run, by the one attack that needs none, and write `audit.json` beside it.

    Raises:
        InputError: the model is in a run's folder, of which more can be audited, or somebody is on both sides.
        ModelError: it cannot be read.
        DataError: images cannot be read.
    """
    if not model.path.exists():
        raise InputError(f"{model.path}: no such file; give model.safetensors, with config.json beside it")
    if (model.folder / "run.json").exists():
        raise InputError(f"{model.folder}: is a run's folder, of which all can be audited: privfm audit {model.folder}")
    effort, observer = _QUICK_MEMBERSHIP if quick else MembershipEffort(), observer or Observer()
    observer.stage(f"auditing: membership (about {240 if quick else 600} s)")
    result = replace(_unbroken("membership", lambda: audit_model(model, effort, observer), local=True), quick=quick)
    others = ", ".join(name for name in AUDITS if name != "membership")
    notice = f"of a model alone membership is all that can be audited; not done, for want of its run: {others}"
    report = Report((result,), (notice,), (AUDITS["membership"].left_out,) if quick and result.done else ())
    (model.folder / LOCAL).parent.mkdir(mode=0o700, exist_ok=True)
    return keep_report(report, model.folder, list(AUDITS))


def _usual(run: RunDirectory) -> set[str]:
    """Return which audits a run gets when none is asked for: one of forgetting only where somebody asked out."""
    asked_out = bool(read_forgotten(run)) or read_origin(run) is not None
    return set(AUDITS) if asked_out else set(AUDITS) - {"forget"}


def rehearse(plan: Plan, only: Sequence[str] = (), *, quick: bool = False, observer: Observer | None = None) -> Report:
    """Audit what a plan would do, before it is run: its mechanism on made-up units, through all of its steps.

    Images are read to know the hospitals; nothing is computed of them.

    Raises:
        InputError: an audit of that name does not exist or needs a run; the plan or its images will not do.
    """
    possible = {name: audit for name, audit in AUDITS.items() if audit.of_plans}
    _check_names(only, possible)
    observer = observer or Observer()
    observer.stage(f"reading {plan.data.source}")
    whole = complete_plan(plan, gather_cohort(plan).nominal_units, clip_norm=1.0, loss_bound=1.0)
    subject = Subject(whole, lambda: build_learner(whole), None, quick, frozenset(only), observer)
    return _made(subject, [name for name in possible if name in (only or possible)])


def _check_names(only: Sequence[str], possible: dict[str, Audit]) -> None:
    for name in only:
        if name not in possible:
            why = "needs a run that is over" if name in AUDITS else "no such audit"
            how = "; for several, give --only as often" if "," in name else ""
            raise InputError(f"--only {name}: {why}{how}; there are {', '.join(possible)}")


def _made(subject: Subject, names: Sequence[str]) -> Report:
    threads, results = subject.plan.performance.threads, []
    if threads:
        torch.set_num_threads(threads)
    for name in names:
        seconds = AUDITS[name].quick_seconds if subject.quick else AUDITS[name].seconds
        subject.observer.stage(f"auditing: {name} (about {seconds} s for a small run)")
        local = name in _READS_IMAGES and (_of_people(subject.plan) or subject.others is not None)
        result = _tried(name, lambda name=name: AUDITS[name].attempt(subject), local=local)  # type: ignore[misc]
        results.append(replace(result, quick=subject.quick and bool(AUDITS[name].left_out)))
    left_out = [AUDITS[result.name].left_out for result in results if result.quick and result.done]
    return Report(tuple(results), (), tuple(left_out))


def _tried(name: str, attempt: Callable[[], AuditResult], *, local: bool) -> AuditResult:
    """Return what an audit found, or that it could not be carried out: the others' results are kept all the same."""
    try:
        return _unbroken(name, attempt, local=local)
    except (PrivfmError, OSError) as error:
        return not_done(name, str(error), local=local)


def _unbroken(name: str, attempt: Callable[[], AuditResult], *, local: bool) -> AuditResult:
    """The same, where what is wrong with files and flags is for the caller to tell."""
    try:
        result = attempt().finite()
        return replace(result, advice=ON_LEAK[name]) if result.verdict is Verdict.LEAK else result
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        told = " ".join(str(error).split())[:200]
        return not_done(name, f"broke off: {type(error).__name__}: {told}", local=local)


_READS_IMAGES = ("membership", "forget")


def _of_people(plan: Plan) -> bool:
    """Whether images are a hospital's own: whatever is told of them, names of files too, stays there."""
    return plan.data.source not in BUILT_IN


def _notices(facts: RunFacts, names: Sequence[str]) -> tuple[str, ...]:
    """What a reader should know: these audits try the code that is installed, and another made the run."""
    made_by, tried = facts.version, [name for name in names if name in _TRY_CODE]
    if made_by == __version__ or not tried:
        return ()
    return (f"the run was made by privfm {made_by}, and the code of {__version__} was tried: {', '.join(tried)}",)


_TRY_CODE = ("mechanism", "canaries", "property", "reconstruction")
