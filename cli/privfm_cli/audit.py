"""`privfm audit`: what attacks find on a finished run, and what checks find on the code that made it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privfm_cli.console import WIDTH, say, show, show_json

if TYPE_CHECKING:
    from privfm_attacks.verdicts import AuditResult

__all__ = ["audit"]


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    only: Annotated[
        list[str] | None, typer.Option(help="mechanism, canaries or ledgers; may be repeated.", show_default="all")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Audit the run in RUN: does its mechanism do what it declares, what can canaries tell, do ledgers match records?

    Mechanism and canaries run the plan's mechanism again on made-up units; no image is read. Writes audit.json into the
    folder. Exit code 4 when an audit's verdict is LEAK.
    """
    from privfm_attacks.run import FILE, audit_run

    from privfm.errors import VerificationError

    results = audit_run(run, only or (), begun=lambda name: say(f"auditing: {name}"))
    if as_json:
        show_json({"audits": [result.to_json() for result in results]})
    else:
        for result in results:
            _tell(result)
    leaks = [result.name for result in results if result.verdict == "LEAK"]
    if leaks:
        raise VerificationError(f"{', '.join(leaks)}: LEAK; do not publish this model, see {run / FILE}")


def _tell(result: AuditResult) -> None:
    show(f"{result.name}: {result.verdict}")
    for line in (
        result.sentence,
        *(f"FAILED {each.check}: {each.detail}" for each in result.findings if not each.passed),
    ):
        show(textwrap.indent(textwrap.fill(line, WIDTH - 2), "  "))
    show(textwrap.indent(textwrap.fill(result.null_means, WIDTH - 2), "  "))
