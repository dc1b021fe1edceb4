"""`privfm forget`: a patient, or a hospital, asks out of a run."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privfm.errors import InputError
from privfm_cli.console import WIDTH, show, show_json

if TYPE_CHECKING:
    from privfm.federation.directory import RunDirectory
    from privfm.federation.forgetting import Farewell
    from privfm.federation.records import RunResult

__all__ = ["forget"]

MOST_FILES = 20


def forget(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    hospital: Annotated[
        str, typer.Option("--hospital", metavar="NAME", help="Whom they asked, or who asks.", show_default=False)
    ],
    patient: Annotated[
        str | None,
        typer.Option("--patient", metavar="ID", help="As the images call them.", show_default="the whole hospital"),
    ] = None,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="Their images are gone already: take ID as it is typed.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="NEW", help="Train again without them, into this folder.", show_default="only take note"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """A patient of a hospital, or the hospital as a whole, asks out of the run in RUN.

    The hospital's ledger gets an entry without a name, and nothing is refunded. The identifier goes into the hospital's
    own files, and this run never reads those images again. What still holds for what was released is told in words.

    With --out the run is trained again as if they had never been there: same plan, same start, new noise. Whoever stays
    pays for every round again, on the same ledgers; RUN itself cannot go on then, and keeps the ledgers.
    """
    if deleted and patient is None:
        raise InputError("--deleted: goes with --patient")
    from privfm.federation.directory import RunDirectory as Directory
    from privfm.federation.directory import check_free
    from privfm.federation.forgetting import check_enough_stay
    from privfm.federation.forgetting import forget as take_note

    directory = Directory.existing(run)
    if out is not None:
        check_free(out)
        if patient is None:
            check_enough_stay(directory, hospital)
    told = take_note(directory, hospital, patient, deleted=deleted)
    if not as_json:
        _tell(told)
    again = None if out is None else _train_again(directory, out)
    if as_json:
        show_json({**told.to_json(), "again": None if again is None else again.to_json()})
    elif again is None:
        _say_how(run, told)
    else:
        from privfm_cli.summary import show_result

        show()
        show_result(again, Directory.existing(again.out).plan)


def _tell(told: Farewell) -> None:
    if told.known:
        show("They asked before; nothing was written.")
    for sentence in told.sentences():
        show(textwrap.fill(sentence, WIDTH))
    if told.files:
        show("Deleting their images is the hospital's; they are here:")
        for file in told.files[:MOST_FILES]:
            show(f"  {file}")
        if len(told.files) > MOST_FILES:
            show(f"  and {len(told.files) - MOST_FILES} more (--json lists them all)")


def _say_how(run: Path, told: Farewell) -> None:
    who = f"--hospital {shlex.quote(told.hospital)}" + (" --patient ID" if told.what == "patient" else "")
    if told.first_round is not None:
        show(f"Train again without them: privfm forget {shlex.quote(str(run))} {who} --out NEW")


def _train_again(directory: RunDirectory, out: Path) -> RunResult:
    from privfm.federation.forgetting import train_again
    from privfm.report import write_report
    from privfm_cli.progress import watching

    with watching(directory.plan.privacy.epsilon) as observer:
        result = train_again(directory, out, observer=observer)
        observer.stage("writing the report")
        write_report(out)
    return result
