"""`privfm tune`: a search for settings, every run of which is charged to the hospitals' lasting ledgers."""

from __future__ import annotations

import shlex
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privfm.dp.figures import figure
from privfm.errors import InputError, PlanError
from privfm_cli.console import WIDTH, Column, say, show, show_json, show_table
from privfm_cli.plan_flags import Flags, plan_from, takes_plan_flags

if TYPE_CHECKING:
    from privfm.federation.observer import Observer
    from privfm.federation.search import Search, Trial
    from privfm.federation.tuning import SearchResult

__all__ = ["tune"]


@takes_plan_flags
def tune(
    plan_file: Annotated[Path | None, typer.Argument(metavar="[PLAN.toml]", show_default=False)] = None,
    tries: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="KEY=A,B",
            help="Values of a key of the plan, two or more; several keys multiply. Needed, unless --resume.",
            show_default=False,
        ),
    ] = None,
    ledgers: Annotated[
        Path | None,
        typer.Option(
            "--ledgers",
            metavar="FOLDER",
            help="Lasting ledgers that pay for it. Needed, unless --resume.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where its runs go. Needed.", show_default=False)
    ] = None,
    total_epsilon: Annotated[
        float | None, typer.Option("--total-epsilon", help="For all runs together.", show_default="the plan's epsilon")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Spend it.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
    *,
    flags: Flags,
) -> None:
    """Train once for every combination of values, and say which did best on public images. Every run is charged.

    All runs together cost each hospital --total-epsilon at most: the more is tried, the more noise has each run. The
    best one is the result, so nothing is trained again. What it will cost is printed first; --yes spends it.

    No private loss decides: runs are compared by the loss on public photographs, and no probe is made.
    """
    if out is None:
        raise InputError("--out: say where the search goes" if not resume else "--resume: say which search with --out")
    if resume:
        _refuse_with_resume(plan_file, tries, ledgers, total_epsilon, flags)
        _finish(None, out, as_json=as_json)
        return
    search = _planned(plan_file, tries or [], ledgers, out, total_epsilon, flags)
    if not yes:
        if as_json:
            show_json(search.to_json())
        else:
            _show_cost(search)
        raise InputError("--yes: nothing was trained or spent; add it to spend this")
    if not as_json:
        _show_cost(search)
        show()
    _finish(search, out, as_json=as_json)


def _refuse_with_resume(*typed: object) -> None:
    if any(typed):
        raise InputError(
            "--resume: the search knows what is tried, where and at what cost; give --out and --json alone"
        )


def _planned(
    plan_file: Path | None, tries: Sequence[str], ledgers: Path | None, out: Path, total: float | None, flags: Flags
) -> Search:
    if ledgers is None:
        raise InputError("--ledgers: say which lasting ledgers pay for the search; a new folder is made")
    if not tries:
        raise InputError("--try: say what to try, such as --try optimizer.learning_rate=0.003,0.01")
    if out.exists() or out.is_symlink():
        raise InputError(f"--out {out}: already there; go on with it by adding --resume, or give another folder")
    values = dict(map(_values, tries))
    if len(values) < len(tries):
        raise PlanError("--try: a key is there twice; give all of its values at once")
    plan = plan_from(plan_file, flags)
    say(f"reading {plan.data.source}")
    from privfm.federation.search import plan_search

    search = plan_search(plan, values, ledgers, total)
    new = [each.id for each in search.costs if not (ledgers / f"{each.id}.sqlite").exists()]
    if new:
        say(f"--ledgers {ledgers}: new ledgers will be begun there, with nothing spent, for {', '.join(new)}")
    return search


def _values(text: str) -> tuple[str, list[Any]]:
    """Return a key and what to try for it; words need no quotes.

    Example:
        >>> _values("optimizer.learning_rate=0.003,1e-2"), _values("federation.strategy=fedavg,fedadam")
        (('optimizer.learning_rate', [0.003, 0.01]), ('federation.strategy', ['fedavg', 'fedadam']))
    """
    key, equals, values = text.partition("=")
    if key and equals and not values.strip():
        raise PlanError(f"--try {text}: has no values; give two or more, as in {key}=A,B")
    if not (key and equals and all(each.strip() for each in values.split(","))):
        raise PlanError(f"--try {text}: give a key of the plan and values, as in optimizer.learning_rate=0.003,0.01")
    return key.strip(), [_value(each.strip()) for each in values.split(",")]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _finish(search: Search | None, out: Path, *, as_json: bool) -> None:
    from privfm.federation.tuning import run_search
    from privfm.report import write_report

    try:
        result = run_search(search, out, _observe)
        write_report(result.best.out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with: privfm tune --resume --out {shlex.quote(str(out))}") from None
    if as_json:
        show_json(result.to_json())
    else:
        _show_result(result)


def _observe(trial: Trial) -> Observer:
    from privfm_cli.progress import PlainProgress

    say(f"{trial.name}: {_words(trial.values)}")
    return PlainProgress(trial.plan.privacy.epsilon)


def _words(values: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _show_cost(search: Search) -> None:
    columns = [
        Column("hospital", right=False),
        Column("noise multiplier"),
        Column("epsilon a trial"),
        Column(f"of all {len(search.trials)}"),
        Column("of allowed"),
        Column("on its ledger"),
        Column("afterwards"),
        Column("left of its cap"),
    ]
    rows = [
        (
            each.id,
            f"{each.noise_multiplier:.3f}",
            figure(each.epsilon_trial),
            figure(each.epsilon_search),
            f"{each.epsilon_allowed:g}",
            figure(each.epsilon_before),
            figure(each.epsilon_after),
            "no cap" if each.cap_left is None else f"{each.cap_left:.1%}",
        )
        for each in search.costs
    ]
    show_table(columns, rows)
    show(f"Epsilon is at delta {search.delta:g}, with every trial's retries; it is spent at most.")


def _show_result(result: SearchResult) -> None:
    from privfm.report import public_loss_verdict

    keys = list(result.trials[0].values)
    columns = [Column("trial", right=False), *map(Column, keys), Column("public loss"), Column("noise only")]
    rows = [
        (
            each.name,
            *(str(each.values[key]) for key in keys),
            f"{each.public_loss.trained:.4f}",
            f"{each.public_loss.noise_only:.4f}",
        )
        for each in result.trials
    ]
    show_table(columns, rows)
    show()
    best = result.best
    show(textwrap.fill(f"Best on public images: {best.name}, {_words(best.values)}.", WIDTH))
    show(textwrap.fill(public_loss_verdict(best.public_loss, result.search.trials[0].plan), WIDTH))
    show()
    place = shlex.quote(str(best.out))
    show(f"Its model is {best.out / 'model.safetensors'}; nothing has to be trained again.")
    show(f"  privfm budget statement {place}")
    show(f"  privfm budget show {place}")
