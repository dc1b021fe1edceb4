"""Audits of a run that is over, of a model without its run, and of a plan that was not run yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from privfm import __version__
from privfm.errors import InputError, PrivfmError, RunError
from privfm.federation.cohort import gather_cohort
from privfm.federation.directory import RunDirectory, RunFacts
from privfm.federation.forgotten import read_forgotten, read_origin
from privfm.federation.network import build_learner, load_network
from privfm.federation.observer import Observer
from privfm.federation.planning import complete_plan
from privfm.federation.verifying import begun_plan
from privfm.plan import Plan
from privfm_attacks.advice import ON_LEAK
from privfm_attacks.audits import AUDITS, QUICK_MEMBERSHIP, READS_IMAGES, Audit, Subject, of_people
from privfm_attacks.membership import MembershipEffort
from privfm_attacks.model_file import ModelFile, audit_model
from privfm_attacks.report import LOCAL, Report, keep_report
from privfm_attacks.verdicts import AuditResult, Verdict, not_done

__all__ = ["audit_file", "audit_run", "rehearse"]


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
    effort, observer = QUICK_MEMBERSHIP if quick else MembershipEffort(), observer or Observer()
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
        local = name in READS_IMAGES and (of_people(subject.plan) or subject.others is not None)
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


def _notices(facts: RunFacts, names: Sequence[str]) -> tuple[str, ...]:
    """What a reader should know: these audits try the code that is installed, and another made the run."""
    made_by, tried = facts.version, [name for name in names if name in _TRY_CODE]
    if made_by == __version__ or not tried:
        return ()
    return (f"the run was made by privfm {made_by}, and the code of {__version__} was tried: {', '.join(tried)}",)


_TRY_CODE = ("mechanism", "canaries", "property", "reconstruction")
