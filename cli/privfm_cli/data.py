"""`privfm data`: what a hospital has, told to the hospital alone."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privfm_cli.console import WIDTH, Column, show, show_json, show_table

if TYPE_CHECKING:
    from privfm.data.check import DataReport

__all__ = ["commands"]

MOST_LINES = 20

commands = typer.Typer(no_args_is_help=True)


@commands.callback()
def _data() -> None:
    """Look at images before training on them."""


@commands.command("check")
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Tell a hospital what is in DIR, a folder of images, a manifest.csv or a folder of DICOM files.

    What it says names files and patients: it is for the hospital's own eyes, and nothing is sent anywhere. The exit
    code is 2 when training would refuse the data. Patients at several hospitals are accepted where the plan declares
    them; the last line says how.
    """
    from privfm.data.check import check_folder

    report = check_folder(folder)
    if as_json:
        show_json(report.to_dict())
    else:
        _show(report)
    if not report.usable:
        raise typer.Exit(2)


def _show(report: DataReport) -> None:
    fewest, median, most = report.images_per_patient
    show(f"{report.path}: {report.images} images of {report.patients} patients ({report.kind})")
    show(f"  images per patient  fewest {fewest}, median {median:g}, most {most}")
    _show_counts("sizes", report.sizes)
    _show_counts("stored as", report.modes)
    _show_counts("labels", report.labels)
    if report.passed_over:
        show(f"  passed over         {report.passed_over} files of other kinds")
    if report.hospitals:
        show()
        _show_hospitals(report)
    _show_list("Training refuses this", report.problems)
    _show_list("Doubtful: is every patient id one person?", report.identifier_warnings)
    shared = [f"{patient}: {', '.join(places)}" for patient, places in report.shared_patients.items()]
    _show_list("Patients at several hospitals (refused unless the plan declares them)", shared)
    _show_list("Near-duplicates across patients (one person under two ids?)", _pairs(report), report.duplicate_pairs)
    show()
    show(textwrap.fill(_verdict(report), WIDTH))


def _verdict(report: DataReport) -> str:
    if not report.usable:
        return "Training would refuse this folder."
    most = report.max_hospitals_per_patient
    if most == 1:
        return "Training would accept this folder."
    return (
        f"Training would refuse this folder unless the plan declares, under [data], max_hospitals_per_patient = {most}"
        f": a patient is at {most} hospitals, and what they spend is added up. If these are different people, rename "
        "their folders instead."
    )


def _show_counts(name: str, counts: dict[str, int]) -> None:
    if counts:
        show(f"  {name:<18}  " + ", ".join(f"{what} ({count})" for what, count in counts.items()))


def _show_hospitals(report: DataReport) -> None:
    columns = [Column("hospital", right=False), Column("patients"), Column("images"), Column("images per patient")]
    rows = [
        (each.hospital, str(each.patients), str(each.images), "{} / {:g} / {}".format(*each.images_per_patient))
        for each in report.hospitals
    ]
    show_table(columns, rows)


def _pairs(report: DataReport) -> list[str]:
    return [
        f"{pair.first} ({pair.first_patient}) and {pair.second} ({pair.second_patient})" for pair in report.duplicates
    ]


def _show_list(title: str, lines: tuple[str, ...] | list[str], total: int | None = None) -> None:
    """Write the first lines under a title, and how many more there are; nothing when there are none."""
    if not lines:
        return
    show()
    show(f"{title}:")
    for line in lines[:MOST_LINES]:
        show(f"  {line}")
    more = (total or len(lines)) - MOST_LINES
    if more > 0:
        show(f"  and {more} more; --json lists more of them")
