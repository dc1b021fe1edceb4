"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from privfm import __version__
from privfm_cli import audit, budget, data, forget, keys, plan, report, roster, train, tune

__all__ = ["app"]

EPILOG = (
    "Exit codes: 0 done; 1 the run cannot go on; 2 something typed or supplied is wrong; 3 the privacy budget does "
    "not allow it; 4 something was verified and is not what it must be; 130 interrupted."
)

app = typer.Typer(
    name="privfm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    suggest_commands=False,
    rich_markup_mode="markdown",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"privfm {__version__}")
        raise typer.Exit


@app.callback()
def _privfm(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hospitals train one self-supervised image backbone together, without showing anyone an image."""


app.command("train", epilog=train.EPILOG)(train.train)
app.command("tune")(tune.tune)
app.add_typer(plan.commands, name="plan")
app.add_typer(data.commands, name="data")
app.command("report")(report.report)
app.command("audit")(audit.audit)
app.command("forget")(forget.forget)
app.add_typer(budget.commands, name="budget")
app.add_typer(keys.commands, name="keys")
app.add_typer(roster.commands, name="roster")
