"""`privfm budget`: what a guarantee costs, what a ledger has spent, and whether it was tampered with.

Only `recover`, which works on a run's folder, loads torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from privfm.errors import PlanError
from privfm_cli.console import Column, show, show_json, show_table

__all__ = ["commands"]

commands = typer.Typer(no_args_is_help=True, help="Plan, show and verify privacy budgets, on any machine.")

Json = Annotated[bool, typer.Option("--json", help="Write one JSON object.")]
Ledgers = Annotated[Path, typer.Argument(metavar="DIR|LEDGER", show_default=False)]
Delta = Annotated[
    float | None, typer.Option(show_default="the run's, or 1e-5", help="Chance that the guarantee may fail with.")
]


@dataclass(frozen=True)
class BudgetPlan:
    """What a hospital would spend.

    Args:
        nominal_units: declared privacy units.
        sample_rate: chance of a unit to be drawn in a step.
        expected_units: units drawn in a step on average; the divisor of the noised sum.
        steps: noisy steps, retries included.
        noise_multiplier: noise standard deviation over clip norm.
        noise_share: noise standard deviation of one averaged gradient coordinate, in clip norms.
        delta, epsilon: what all steps cost together.
        accountant: which one said so.
    """

    nominal_units: int
    sample_rate: float
    expected_units: float
    steps: int
    noise_multiplier: float
    noise_share: float
    delta: float
    epsilon: float
    accountant: str


@commands.command("plan")
def plan(
    nominal_units: Annotated[int, typer.Option(min=1, help="Declared number of patients.")],
    sample_rate: Annotated[float | None, typer.Option(help="A patient's chance to be drawn in a step.")] = None,
    expected_units: Annotated[float | None, typer.Option(help="Instead: patients drawn in a step, on average.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Noisy steps, retries included.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Instead: rounds of the federation.")] = None,
    local_steps: Annotated[int, typer.Option(min=1, help="Noisy steps in a round.")] = 1,
    retry_rounds: Annotated[int, typer.Option(min=0, help="Rounds a crash may cost, beside --rounds.")] = 2,
    epsilon: Annotated[float, typer.Option(help="What may be spent.")] = 8.0,
    delta: Annotated[float, typer.Option(help="Chance that the guarantee may fail with.")] = 1e-5,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Instead of --epsilon: noise standard deviation over clip norm.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how much noise a guarantee needs, or what a given noise costs."""
    rate = _rate(nominal_units, sample_rate, expected_units)
    count = _steps(steps, rounds, local_steps, retry_rounds)
    budget = _budget(nominal_units, rate, count, epsilon, delta, noise_multiplier)
    if as_json:
        show_json(asdict(budget))
        return
    show(f"noise multiplier  {budget.noise_multiplier:.4f}")
    show(f"epsilon spent     {budget.epsilon:.4f} at delta {budget.delta:g} ({budget.accountant})")
    show(f"steps             {budget.steps}")
    show(f"sampling rate     {budget.sample_rate:g}, {budget.expected_units:g} of {nominal_units} patients a step")
    show(f"noise             {budget.noise_share:.3g} clip norms in each coordinate of the averaged gradient")


def _rate(nominal_units: int, sample_rate: float | None, expected_units: float | None) -> float:
    if (sample_rate is None) == (expected_units is None):
        raise PlanError("--sample-rate or --expected-units: give one of the two")
    rate = sample_rate if sample_rate is not None else (expected_units or 0.0) / nominal_units
    if not 0 < rate <= 1:
        flag = "--sample-rate" if sample_rate is not None else "--expected-units"
        raise PlanError(f"{flag}: a sampling rate of {rate:g}; it must be above 0 and at most 1")
    return rate


def _steps(steps: int | None, rounds: int | None, local_steps: int, retry_rounds: int) -> int:
    if (steps is None) == (rounds is None):
        raise PlanError("--steps or --rounds: give one of the two")
    return steps if steps is not None else ((rounds or 0) + retry_rounds) * local_steps


def _budget(
    units: int, rate: float, steps: int, epsilon: float, delta: float, noise_multiplier: float | None
) -> BudgetPlan:
    from privfm.dp.accounting import accountant_version
    from privfm.dp.accounting import epsilon as spent
    from privfm.dp.calibration import calibrate_noise
    from privfm.dp.events import SampledGaussian

    _check("--delta", delta, 0.1)
    _check("--epsilon", epsilon, 100.0)
    if noise_multiplier is not None:
        _check("--noise-multiplier", noise_multiplier, 1e6)
    noise = noise_multiplier or calibrate_noise(epsilon=epsilon, delta=delta, sample_rate=rate, steps=steps)
    return BudgetPlan(
        nominal_units=units,
        sample_rate=rate,
        expected_units=rate * units,
        steps=steps,
        noise_multiplier=noise,
        noise_share=noise / (rate * units),
        delta=delta,
        epsilon=spent([SampledGaussian(rate, noise, steps)], delta),
        accountant=accountant_version("pld"),
    )


def _check(flag: str, value: float, most: float) -> None:
    if not 0 < value <= most:
        raise PlanError(f"{flag} {value:g}: must be above 0 and at most {most:g}")


@commands.command("show")
def show_spending(path: Ledgers, delta: Delta = None, as_json: Json = False) -> None:
    """Show what each hospital has spent, over all runs in its ledger: of a run's folder, or of one ledger."""
    from privfm_cli.spending import read_spending

    found = read_spending(path, delta)
    if as_json:
        show_json({"hospitals": [asdict(hospital) for hospital in found]})
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
                f"{hospital.epsilon:.3f}",
                "-" if hospital.epsilon_allowed is None else f"{hospital.epsilon_allowed:g}",
                f"{hospital.delta:g}",
                str(hospital.steps),
                str(len(hospital.runs)),
                str(sum(run.rounds_charged for run in hospital.runs)),
                "yes" if any(not run.private for run in hospital.runs) else "no",
            )
            for hospital in found
        ],
    )


@commands.command("verify")
def verify(path: Ledgers, as_json: Json = False) -> None:
    """Check that ledgers are whole: every entry's hash follows from the one before it."""
    from privfm_cli.spending import verify_ledgers

    checked = verify_ledgers(path)
    if as_json:
        show_json({"ledgers": [asdict(ledger) for ledger in checked]})
        return
    for ledger in checked:
        show(f"{ledger.hospital}  whole  newest entry {ledger.head[:16]}  {ledger.path}")


@commands.command("recover")
def recover(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    hospital: Annotated[str, typer.Argument(metavar="HOSPITAL", show_default=False)],
    seen: Annotated[
        int | None,
        typer.Option(min=1, show_default="what the run's other ledgers saw", help="Highest counter that a peer saw."),
    ] = None,
    as_json: Json = False,
) -> None:
    """After HOSPITAL's ledger and folder in RUN were restored from a backup: charge what was lost, and go on.

    Whatever its peers saw of it since counts as released. Until then they refuse it.
    """
    from privfm.federation.directory import RunDirectory
    from privfm.federation.recovering import recover_hospital

    done = recover_hospital(RunDirectory.existing(run), hospital, seen)
    if as_json:
        show_json(asdict(done))
    elif done.rounds_charged:
        show(f"{done.hospital}: {done.rounds_charged} rounds charged, up to counter {done.seen} that its peers saw")
        show(f"Go on with: privfm train --resume --out {run}")
    else:
        show(f"{done.hospital}: nothing was lost; nothing charged")
