"""`privfm plan`: what a run would cost and whether it can learn, before anything is spent."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privfm.dp.figures import figure
from privfm.errors import BudgetExceeded, InputError
from privfm_cli.console import WIDTH, Column, say, show, show_json, show_table
from privfm_cli.plan_flags import Flags, plan_from, takes_plan_flags

if TYPE_CHECKING:
    from privfm.federation.checking import HospitalCheck, PlanCheck
    from privfm.federation.room import Room

__all__ = ["commands"]

commands = typer.Typer(no_args_is_help=True)


@commands.callback()
def _plan() -> None:
    """Say what a plan would cost."""


@commands.command("check")
@takes_plan_flags
def check(
    plan_file: Annotated[Path | None, typer.Argument(metavar="[PLAN.toml]", show_default=False)] = None,
    ledgers: Annotated[
        Path | None,
        typer.Option(
            "--ledgers",
            metavar="FOLDER",
            help="Lasting ledgers that the run would go on in: whether their caps allow it.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
    *,
    flags: Flags,
) -> None:
    """Say what a run would spend, send and take, and whether it can learn. Nothing is spent.

    Images are read to know the hospitals; no gradient of theirs is computed. With --ledgers it ends with exit code 3
    where a lifetime cap has no room for the run.
    """
    if ledgers is not None and not ledgers.is_dir():
        raise InputError(f"--ledgers {ledgers}: no such folder; a run with that would begin new ledgers there")
    plan = plan_from(plan_file, flags)
    say(f"reading {plan.data.source}")
    from privfm.federation.checking import check_plan

    checked = check_plan(plan, ledgers)
    if as_json:
        show_json(checked.to_json())
    else:
        _show(checked)
    _refuse_where_full(checked.rooms, private=checked.plan.privacy.dp)


def _refuse_where_full(rooms: Sequence[Room], *, private: bool) -> None:
    from privfm.federation.room import room_advice

    full = [room for room in rooms if not room.fits]
    if full:
        fitting = [room.epsilon_that_fits for room in rooms if room.cap is not None]
        advice = room_advice(fitting) if private else "one without noise fits under none"
        raise BudgetExceeded(
            f"{', '.join(room.id for room in full)}: the lifetime cap has no room for the whole run; {advice}"
        )


def _show(checked: PlanCheck) -> None:
    _show_hospitals(checked)
    if checked.rooms:
        show()
        _show_rooms(checked.rooms)
    unit, places = checked.plan.privacy.unit, checked.plan.data.max_hospitals_per_patient
    show(f"Epsilon is per {unit}, at delta {checked.delta:g}.")
    if checked.composed is not None:
        show(f"A {unit} with images at {places} hospitals, as declared: epsilon {figure(checked.composed)} at most.")
    show()
    for name, words in _facts(checked):
        show(f"{name:<10}  {words}")
    show()
    worst = max(checked.hospitals, key=lambda hospital: hospital.forecast.noise_to_signal)
    show(textwrap.fill(f"Can it learn? {checked.verdict}: at {worst.id} {worst.forecast.reason}.", WIDTH))
    show("This is a rule of thumb; the noise-only control that a run is probed against is the judge.")


def _show_hospitals(checked: PlanCheck) -> None:
    columns = [
        Column("hospital", right=False),
        Column(f"nominal {checked.plan.privacy.unit}s"),
        Column("sampling rate"),
        Column("noise multiplier"),
        Column("epsilon"),
        Column("with retries"),
        Column("of allowed"),
        Column("noise to signal"),
    ]
    show_table(columns, [_row(hospital) for hospital in checked.hospitals])


def _show_rooms(rooms: Sequence[Room]) -> None:
    columns = ("on its ledger", "after this run", "lifetime cap", "rounds that fit", "allowed")
    rows = [
        (
            room.id,
            "new" if room.new else figure(room.epsilon_before),
            figure(room.epsilon_after),
            "none" if room.cap is None else f"{room.cap:g}",
            "-" if room.rounds_that_fit is None else str(room.rounds_that_fit),
            "yes" if room.fits else "no",
        )
        for room in rooms
    ]
    show_table([Column("hospital", right=False), *map(Column, columns)], rows)


def _row(hospital: HospitalCheck) -> tuple[str, ...]:
    return (
        hospital.id,
        str(hospital.nominal_units),
        f"{hospital.sample_rate:g}",
        f"{hospital.noise_multiplier:.3f}",
        figure(hospital.epsilon),
        figure(hospital.epsilon_with_retries),
        f"{hospital.epsilon_allowed:g}",
        f"{hospital.forecast.noise_to_signal:.3g}",
    )


def _facts(checked: PlanCheck) -> list[tuple[str, str]]:
    from privfm.report.words import size
    from privfm_cli.progress import duration

    plan, hospitals, up, down = checked.plan, len(checked.hospitals), checked.bytes_up, checked.bytes_down
    rounds, reserve = plan.federation.rounds, plan.federation.retry_rounds
    return [
        ("trains", f"{checked.trainable:,} parameters of {plan.model.backbone or 'the default backbone'}"),
        ("steps", f"{plan.planned_steps} a hospital in {rounds} rounds; {reserve} rounds more in reserve"),
        (
            "drop-outs",
            f"{checked.dropouts_tolerated} of {hospitals} hospitals; {checked.threshold} must finish",
        ),
        ("sends", f"{size(up)} a hospital and round, {size(rounds * up)} in all"),
        ("receives", f"{size(down)} a hospital and round, {size(rounds * down)} in all"),
        ("takes", f"about {duration(checked.seconds)} of training on this machine; start and probe come on top"),
    ]
