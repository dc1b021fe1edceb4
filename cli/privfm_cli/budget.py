"""`privfm budget`: what a guarantee costs, what a ledger has spent, and whether it was tampered with.

Only what works on a run's folder loads torch: `statement`, `recover`, and `verify` of one.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from privfm.dp.figures import figure
from privfm.errors import InputError, PlanError
from privfm_cli.budget_plan import plan
from privfm_cli.console import Column, say, show, show_json, show_table

__all__ = ["commands"]

commands = typer.Typer(no_args_is_help=True, help="Plan, show and verify privacy budgets, on any machine.")

Json = Annotated[bool, typer.Option("--json", help="Write one JSON object.")]
Ledgers = Annotated[Path, typer.Argument(metavar="DIR|LEDGER", show_default=False)]
Delta = Annotated[
    float | None, typer.Option(show_default="the run's, or 1e-5", help="Chance that the guarantee may fail with.")
]


commands.command("plan")(plan)


@commands.command("show")
def show_spending(path: Ledgers, delta: Delta = None, as_json: Json = False) -> None:
    """Show what each hospital has spent, over all runs in its ledger: of a run's folder, or of one ledger."""
    from privfm_cli.spending import read_spending

    found = read_spending(path, delta)
    if as_json:
        composed = None if found.composed is None else found.composed.model_dump(mode="json")
        hospitals = [asdict(hospital) for hospital in found.hospitals]
        show_json({"hospitals": hospitals, "composed": composed, "warnings": found.warnings})
        return
    show_table(
        [
            Column("hospital", right=False),
            Column("epsilon spent"),
            Column("of allowed"),
            Column("delta"),
            Column("steps"),
            Column("runs"),
            Column("rounds charged"),
            Column("not private"),
        ],
        [
            (
                hospital.hospital,
                figure(hospital.epsilon),
                "-" if hospital.epsilon_allowed is None else f"{hospital.epsilon_allowed:g}",
                f"{hospital.delta:g}",
                str(hospital.steps),
                str(len(hospital.runs)),
                str(sum(run.rounds_charged for run in hospital.runs)),
                "yes" if any(not run.private for run in hospital.runs) else "no",
            )
            for hospital in found.hospitals
        ],
    )
    for hospital in found.hospitals:
        if hospital.asked_out:
            show(f"{hospital.hospital}: somebody asked out; what was spent before stays spent.")
    for warning in found.warnings:
        say(f"privfm: warning: {warning}")
    if found.composed is not None:
        places = ", ".join(found.composed.hospitals)
        show(f"A patient seen at {places}: epsilon {figure(found.composed.epsilon)} at delta {found.composed.delta:g}.")


@commands.command("verify")
def verify(path: Ledgers, as_json: Json = False) -> None:
    """Check that ledgers are whole: every entry's hash follows from the one before it, and nothing ever goes back.

    Of a run's folder also that plan, mechanism, charges and each round's transcript are those of the run's records, and
    that its model, statement and result are what came of them. Of lasting ledgers that they go together.
    """
    from privfm_cli.spending import run_of, verify_ledgers

    checked = verify_ledgers(path)
    if as_json:
        show_json({"ledgers": [asdict(ledger) for ledger in checked]})
        return
    for ledger in checked:
        rounds = "" if ledger.rounds_matched is None else f"{ledger.rounds_matched} rounds as in the run's records  "
        show(f"{ledger.hospital}  whole  {rounds}newest entry {ledger.head[:16]}  {ledger.path}")
    run = run_of(path)
    if run is not None and run[1] is None:
        over = (run[0] / "result.json").exists()
        show(
            "What the run left, model, statement and result included, is as its ledgers say."
            if over
            else "The run is not over: its plan, records and start are as its ledgers say; there is no result yet."
        )


@commands.command("statement")
def statement(path: Ledgers, as_json: Json = False) -> None:
    """Write a run's privacy statement, as its ledgers stand now: of its folder, or of one ledger inside of it."""
    from privfm_cli.spending import run_of

    found = run_of(path)
    if found is None:
        raise InputError(
            f"{path}: a statement needs the run's plan; give a run's folder or a ledger inside of one "
            "(privfm budget show says what any ledger has spent)"
        )
    from privfm.federation.directory import RunDirectory
    from privfm.federation.stating import state_run

    root, hospital = found
    stated = state_run(RunDirectory.existing(root), hospital)
    if as_json:
        show_json(stated.model_dump(mode="json"))
    else:
        show(stated.to_text().rstrip())


@commands.command("cap")
def cap(
    path: Ledgers,
    epsilon: Annotated[
        float | None, typer.Option(show_default="show the cap in force", help="Set the cap, or lower it.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(show_default="the run's, or 1e-5", help="Of a first cap; it stays for life.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or set each hospital's lifetime cap: what all its runs together may spend. It can be lowered, never raised.

    Before every round the ledger asks whether everything so far and this round still fit, and refuses if not. That
    holds also when later runs are planned by looking at earlier ones. It counts more than `show` does: a cap of 5 is
    full where `show` says 4.6 after a thousand steps, and 2.6 to 4.5 after eight.
    """
    from privfm_cli.caps import lower_caps, read_caps

    if epsilon is None and delta is not None:
        raise PlanError(f"--delta {delta:g}: goes with --epsilon, which sets a cap")
    found = read_caps(path) if epsilon is None else lower_caps(path, epsilon, delta)
    if epsilon is not None and any(each.after_releases for each in found):
        say("A cap that is set after releases is proved only if it was not chosen by looking at them.")
    for each in found:
        if each.rounds_that_fit is not None and each.rounds_that_fit < (each.rounds_left or 0):
            left = f"{each.rounds_left} rounds left of its run, retries included,"
            say(f"{each.hospital}: only {each.rounds_that_fit} of the {left} fit")
    if as_json:
        show_json({"hospitals": [asdict(each) for each in found]})
        return
    columns = ("lifetime cap", "delta", "order", "divergence left", "rounds that fit", "left of its run, with retries")
    show_table(
        [Column("hospital", right=False), *map(Column, columns)],
        [
            (
                each.hospital,
                "none" if each.epsilon is None else f"{each.epsilon:g}",
                "-" if each.delta is None else f"{each.delta:g}",
                "-" if each.order is None else f"{each.order:g}",
                "-" if each.share_left is None else f"{each.share_left:.1%}",
                "-" if each.rounds_that_fit is None else str(each.rounds_that_fit),
                "-" if each.rounds_left is None else str(each.rounds_left),
            )
            for each in found
        ],
    )
    if any(each.share_left is not None for each in found):
        show("Divergence left: of the cap's own budget, of which equal steps take equal shares; no share of epsilon.")


@commands.command("recover")
def recover(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    hospital: Annotated[str, typer.Argument(metavar="HOSPITAL", show_default=False)],
    seen: Annotated[
        int | None,
        typer.Option(
            min=1, max=2**63, show_default="what the run's other ledgers saw", help="Highest counter that a peer saw."
        ),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN2", help="Another run in the same ledger that began after the backup; repeat it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """After HOSPITAL's ledger and folder in RUN were restored from a backup: charge what was lost, and go on.

    Whatever its peers saw of it since counts as released. Until then they refuse it. Of a ledger with several runs RUN
    is the one to go on with; each that may have gone on is charged for all that was lost, because nobody knows whose
    it was. A run that began after the backup is not in it: name it, with --also, before anything is charged.
    """
    from privfm.federation.directory import RunDirectory
    from privfm.federation.recovering import recover_hospital

    others = [RunDirectory.existing(each) for each in also or ()]
    done = recover_hospital(RunDirectory.existing(run), hospital, seen, others)
    if as_json:
        show_json(asdict(done))
    elif done.rounds_charged:
        for name, rounds in done.runs.items():
            show(
                f"{done.hospital}: {rounds} rounds charged to run {name}, up to counter {done.seen} that its peers saw"
            )
        over = RunDirectory.existing(run).over
        what = "The run is over; state what it spent again" if over else "Go on"
        show(f"{what} with: privfm train --resume --out {run}")
    else:
        show(f"{done.hospital}: nothing was lost; nothing charged")
