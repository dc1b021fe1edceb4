"""`privfm train`: a whole federation on this machine, from images to a report."""

from __future__ import annotations

import datetime
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privfm.errors import InputError
from privfm_cli.console import show, show_json
from privfm_cli.plan_flags import SPEED_FLAGS, Flags, check_unchanged, plan_from, takes_plan_flags

if TYPE_CHECKING:
    from privfm.plan import Plan

__all__ = ["EPILOG", "train"]

EPILOG = "Say what a run would cost first: privfm plan check, with the same plan and flags."


@takes_plan_flags
def train(
    plan_file: Annotated[Path | None, typer.Argument(metavar="[PLAN.toml]", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the run goes.", show_default="runs/DATA-TIME")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    ledgers: Annotated[
        Path | None,
        typer.Option(
            "--ledgers",
            metavar="FOLDER",
            help="Lasting ledgers, one a hospital, for this run and others.",
            show_default="the run's own",
        ),
    ] = None,
    print_plan: Annotated[bool, typer.Option("--print-plan", help="Write the plan as TOML; do nothing else.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the result as one JSON object.")] = False,
    *,
    flags: Flags,
) -> None:
    """Train one backbone across hospitals under patient-level differential privacy.

    Flags override PLAN.toml, which overrides the defaults. With neither it trains on real photographs that come with
    the installation, spread over five simulated hospitals.

    With --ledgers each hospital goes on from what earlier runs spent: its lifetime cap binds, and its statement counts
    all of them. Only the newest run in a ledger can be resumed.
    """
    if resume and ledgers is not None:
        raise InputError(f"--ledgers {ledgers}: the run knows where its ledgers are; leave it out with --resume")
    directory = _directory(out, resume=resume)
    plan = _stored_plan(directory, plan_file, flags) if resume else plan_from(plan_file, flags)
    if print_plan:
        show(plan.to_toml().rstrip())
        return
    directory = directory or _default_directory(plan)
    _train(plan, directory, ledgers, resume=resume, as_json=as_json)


def _directory(out: Path | None, *, resume: bool) -> Path | None:
    """Check `--out` before anything is read or computed."""
    if resume and out is None:
        raise InputError("--resume: say which run with --out DIR")
    if resume and out is not None and not (out / "plan.toml").is_file():
        raise InputError(f"--out {out}: no run to go on with (it has no plan.toml); leave --resume out to start one")
    if not resume and out is not None and (out.exists() or out.is_symlink()):
        raise InputError(f"--out {out}: already there; go on with it by adding --resume, or give another folder")
    return out


def _stored_plan(directory: Path | None, plan_file: Path | None, flags: Flags) -> Plan:
    """Return the plan of the run that goes on; flags and files may change its speed only."""
    if directory is None:
        raise ValueError("directory=None: a run that goes on has one")
    from privfm.plan import stored_plan

    stored = stored_plan(directory / "plan.toml")
    if plan_file is not None:
        raise InputError(f"{plan_file}: {directory} keeps its own plan; leave the plan file out with --resume")
    check_unchanged(stored, flags)
    return plan_from(directory / "plan.toml", {flag: value for flag, value in flags.items() if flag in SPEED_FLAGS})


def _default_directory(plan: Plan) -> Path:
    name = Path(plan.data.source).stem or "data"
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _train(plan: Plan, directory: Path, ledgers: Path | None, *, resume: bool, as_json: bool) -> None:
    from privfm.federation.training import train as run
    from privfm.report import write_report
    from privfm_cli.progress import watching

    try:
        with watching(plan.privacy.epsilon) as observer:
            result = run(plan, directory, resume=resume, ledgers=ledgers, observer=observer)
            observer.stage("writing the report")
            write_report(directory)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_go_on(directory)) from None
    if as_json:
        show_json(result.to_json())
    else:
        from privfm_cli.summary import show_result

        show_result(result, plan)


def _how_to_go_on(directory: Path) -> str:
    if not (directory / "plan.toml").is_file():
        return "nothing was released or kept; start again"
    return f"go on with: privfm train --out {shlex.quote(str(directory))} --resume"
