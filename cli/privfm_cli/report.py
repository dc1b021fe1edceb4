"""`privfm report`: what a person reads of a run, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privfm_cli.console import show

__all__ = ["report"]


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
) -> None:
    """Make report.html again, for the run in DIR."""
    from privfm.report import write_report

    show(str(write_report(directory)))
