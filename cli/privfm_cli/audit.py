"""`privfm audit`: what attacks find on a finished run, and what checks find on the code that made it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privfm.errors import InputError, PrivfmError, VerificationError
from privfm_cli.console import WIDTH, say, show, show_json

if TYPE_CHECKING:
    from privfm_attacks.report import Report
    from privfm_attacks.verdicts import AuditResult

__all__ = ["audit"]

MOST_EPSILON = 100.0


def audit(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN|MODEL]", show_default=False)] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="mechanism, canaries, membership, property, reconstruction, forget, transcript, ledgers; repeatable.",
            show_default="all",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick/--full", help="End within minutes on a small run, and say what was left out.")
    ] = False,
    rehearsed: Annotated[
        Path | None,
        typer.Option(
            "--rehearse", metavar="PLAN.toml", help="Audit what a plan would do, before it is run.", show_default=False
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Of a model without its run: images of patients it was trained on.", show_default=False),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="Images of others of the same kind; of a run, by default those it held out.", show_default=False
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Of a model without its run: the epsilon that it is said to have.", show_default="none"),
    ] = None,
    delta: Annotated[float, typer.Option(help="Its delta.")] = 1e-5,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Attack the run in RUN, and check the code that made it, before its model is published.

    Mechanism, canaries, property and reconstruction rehearse the plan's own mechanism on made-up units; --rehearse does
    so for a plan that was not run yet. Membership reads patients' images: of built-in data always, of your own when
    --only asks for it. So does forget, which is made where somebody asked out. Verdicts go into audit.json and the
    report. Exit code 4 when one of them is LEAK, or ledgers cannot be verified.

    A model without its run is audited for membership alone, with images of patients whom it saw and whom it did not:
    privfm audit MODEL --data DIR --held-out DIR.
    """
    if (run is None) == (rehearsed is None):
        raise InputError("give the folder of a run to audit, or --rehearse PLAN.toml; one of the two")
    _check_together(only or [], rehearsed, data, held_out, epsilon, delta)
    if run is not None and run.is_file() and data is None:
        in_run = (run.parent / "run.json").exists()
        how = f"audit the run: privfm audit {run.parent}" if in_run else "add --data DIR --held-out DIR"
        raise InputError(f"{run}: is a model's file; {how}")
    if run is not None and data is not None and held_out is not None:
        report = _model_audited(run, data, held_out, None if epsilon is None else (epsilon, delta), quick=quick)
    elif run is not None:
        report = _audited(run, only or [], held_out, quick=quick)
    else:
        report = _rehearsed(rehearsed, only or [], quick=quick)
    if as_json:
        show_json(report.shareable().to_json())
    else:
        _tell(report)
    if run is not None:
        _put_into_pages(run, report)
    if report.failed:
        after = "" if run is None else f"; do not publish this model: see {_folder(run) / 'audit.json'}, docs/audits.md"
        raise VerificationError(f"{', '.join(report.failed)}: not passed{after}")


def _check_together(
    only: list[str],
    rehearsed: Path | None,
    data: Path | None,
    held_out: Path | None,
    epsilon: float | None,
    delta: float,
) -> None:
    """Refuse flags that go with something else, and numbers that are none."""
    if data is not None and held_out is None:
        raise InputError("a model without its run is audited with: privfm audit MODEL --data DIR --held-out DIR")
    if data is None and epsilon is not None:
        raise InputError("--epsilon: of a run the plan says what is claimed; leave it out")
    if rehearsed is not None and (data or held_out) is not None:
        raise InputError("--rehearse: looks at nobody's images; leave --data and --held-out out")
    if data is not None and set(only) - {"membership"}:
        raise InputError("--only: of a model without its run membership alone can be audited")
    if epsilon is not None and not 0 <= epsilon <= MOST_EPSILON:
        raise InputError(
            f"--epsilon {epsilon:g}: must be from 0 to {MOST_EPSILON:g}; leave it out where none is claimed"
        )
    if not 0 <= delta < 1:
        raise InputError(f"--delta {delta:g}: must be from 0 to below 1")


def _audited(run: Path, only: list[str], others: Path | None, *, quick: bool) -> Report:
    from privfm_attacks.run import audit_run

    from privfm_cli.progress import watching

    with watching(0.0) as observer:
        return audit_run(run, only, quick=quick, observer=observer, others=others)


def _model_audited(
    model: Path, data: Path, held_out: Path, guarantee: tuple[float, float] | None, *, quick: bool
) -> Report:
    from privfm_attacks.claims import Claim
    from privfm_attacks.model_file import ModelFile
    from privfm_attacks.run import audit_file

    from privfm_cli.progress import watching

    claim = Claim() if guarantee is None else Claim.of_guarantee(*guarantee)
    with watching(0.0) as observer:
        return audit_file(ModelFile(model, data, held_out, claim), quick=quick, observer=observer)


def _rehearsed(plan: Path | None, only: list[str], *, quick: bool) -> Report:
    from privfm_attacks.run import rehearse

    from privfm_cli.plan_flags import plan_from
    from privfm_cli.progress import watching

    with watching(0.0) as observer:
        return rehearse(plan_from(plan, {}), only, quick=quick, observer=observer)


def _folder(run: Path) -> Path:
    """A run's, or that of a model's file."""
    return run.parent if run.is_file() else run


def _name_of(run: Path) -> str:
    """As a person calls it; the file that a folder's model is in is always called the same."""
    return _folder(run.absolute()).name


def _put_into_pages(run: Path, report: Report) -> None:
    from privfm_attacks.report import LOCAL

    from privfm.report import write_audit_page, write_report

    folder = _folder(run)
    if any(result.local for result in report.audits) and (folder / LOCAL).exists():
        say(f"figures of patients' images stay at the hospital: {write_audit_page(folder / LOCAL, _name_of(run))}")
    if not (folder / "run.json").exists():
        return
    try:
        write_report(run)
    except PrivfmError as error:  # of a damaged run; the audits have been told
        say(f"privfm: warning: report.html is as it was: {error}")


def _tell(report: Report) -> None:
    for line in report.notices:
        say(f"privfm: warning: {line}")
    newest = max((result.made for result in report.audits), default="")
    for result in report.audits:
        if result.made == newest:
            _tell_one(result)
    for result in report.audits:
        if result.made != newest:
            show(f"{result.name}: {result.verdict}, as found {result.made}")
    for line in report.left_out:
        show(f"left out by --quick: {line}")


def _failed(result: AuditResult) -> list[str]:
    """Failed checks, the first of each kind at length: hospitals with numbers of their own often fail alike."""
    by_check: dict[str, list[str]] = {}
    for finding in result.findings:
        if not finding.passed:
            by_check.setdefault(finding.check, []).append(finding.detail)
    return [
        f"FAILED {check}: {first}" + (f"; and {len(more)} more" if more else "")
        for check, (first, *more) in by_check.items()
    ]


def _tell_one(result: AuditResult) -> None:
    show(f"{result.name}: {result.verdict}")
    for line in (
        result.sentence,
        *_failed(result),
        *([f"What to do: {result.advice}"] if result.advice else []),
        f"Assumed: {result.attacker}.",
        *([] if result.verdict == "LEAK" else [result.null_means]),
    ):
        show(textwrap.indent(textwrap.fill(line, WIDTH - 2), "  "))
