"""The words, tables and JSON in which `privfm budget plan` answers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from privfm.dp.figures import figure
from privfm_cli.budget_questions import Asked
from privfm_cli.console import WIDTH, Column, say, show, show_table

if TYPE_CHECKING:
    from privfm.dp.forecast import Forecast
    from privfm.dp.outlook import Outlook, UnderCap

__all__ = ["Answer", "show_answer", "to_json", "under_caps", "warn_of_caps", "warn_of_delta"]

MEANINGLESS = 50.0
"""Epsilon above which there is no promise left to speak of; people call 10 weak."""

WELL_UNDER = 0.1
"""Delta times patients up to which delta counts as well under one over patients."""

SHOWN = 5
"""Points of a curve in a table."""


@dataclass(frozen=True)
class Answer:
    """What was asked, each hospital's outlook and forecast, and sentences about what was not worked out."""

    asked: Asked
    outlooks: tuple[Outlook, ...]
    forecasts: tuple[Forecast, ...]
    left_out: tuple[str, ...]


def to_json(answer: Answer) -> dict[str, Any]:
    """Return what `--json` prints."""
    from privfm.dp.accounting import accountant_version
    from privfm.dp.events import total_steps

    asked = answer.asked
    caps = {name: asdict(found) for name, found in under_caps(answer).items()}
    forecasts = answer.forecasts or (None,) * len(answer.outlooks)
    return {
        "accountant": accountant_version("pld"),
        "delta": asked.questions[0].delta,
        "steps": asked.steps,
        "steps_with_retries": asked.reserved_steps,
        "local_steps": asked.local_steps,
        "hospitals": [
            {
                "id": each.question.id,
                "nominal_units": each.question.nominal_units,
                "sample_rate": each.question.sample_rate,
                "expected_units": each.expected_units,
                "noise_multiplier": each.noise_multiplier,
                "noise_share": asked.gradient_noise_multiplier(each) / each.expected_units,
                "epsilon": each.epsilon,
                "epsilon_allowed": each.question.epsilon,
                "under_lifetime_cap": caps.get(each.question.id),
                "steps_spent_before": total_steps(each.question.spent),
                "epsilon_after_second_run": each.epsilon_after_second_run,
                "curve": [_point(point.steps, point.epsilon, asked.local_steps) for point in each.curve],
                "forecast": None if forecast is None else asdict(forecast),
            }
            for each, forecast in zip(answer.outlooks, forecasts, strict=True)
        ],
        "left_out": list(answer.left_out),
    }


def under_caps(answer: Answer) -> dict[str, UnderCap]:
    """Return what lifetime caps make of the outlooks, of hospitals that have one."""
    from privfm.dp.outlook import under_cap

    caps = answer.asked.caps
    return {
        each.question.id: under_cap(each, caps[each.question.id])
        for each in answer.outlooks
        if each.question.id in caps
    }


def warn_of_caps(answer: Answer) -> None:
    """Say on standard error which lifetime caps would stop the plan."""
    for name, found in under_caps(answer).items():
        if found.steps == answer.asked.reserved_steps:
            continue
        needed = found.noise_multiplier
        advice = "no noise would do" if needed is None else f"all would with noise multiplier {needed:.4f}"
        say(
            f"{name}: its lifetime cap of {found.cap:g} has room for {found.steps} of {answer.asked.reserved_steps} "
            f"steps; {advice}"
        )


def warn_of_delta(asked: Asked) -> None:
    """Say on standard error that publishing one whole patient now and then would count as private."""
    largest = max(asked.questions, key=lambda question: question.nominal_units)
    delta, units = largest.delta, largest.nominal_units
    if delta * units > WELL_UNDER:
        refused = "; training refuses it" if delta * units >= 1 else ""
        say(
            f"{largest.id}: delta {delta:g} is not well under 1 / {units} patients: a patient published whole now and "
            f"then would count as private; take {10 ** math.floor(math.log10(WELL_UNDER / units)):g} or less{refused}"
        )


def _point(steps: int, epsilon: float, local_steps: int | None) -> dict[str, float]:
    rounds = {} if local_steps is None else {"rounds": steps // local_steps}
    return {**rounds, "steps": steps, "epsilon": epsilon}


def show_answer(answer: Answer) -> None:
    """Write tables and sentences."""
    if answer.asked.plan is None:
        _show_one(answer.outlooks[0], answer.asked)
    else:
        _show_many(answer)
    _show_curves(answer)
    if answer.forecasts:
        show()
        worst = max(range(len(answer.forecasts)), key=lambda i: answer.forecasts[i].noise_to_signal)
        forecast = answer.forecasts[worst]
        where = "" if answer.asked.plan is None else f"at {answer.outlooks[worst].question.id} "
        show(textwrap.fill(f"Can it learn? {forecast.verdict}: {where}{forecast.reason}.", WIDTH))
    for line in (*answer.left_out, *_meaningless(answer)):
        say(line)


def _meaningless(answer: Answer) -> Iterator[str]:
    """Yield a remark about every epsilon that protects nobody."""
    for each in answer.outlooks:
        if each.epsilon > MEANINGLESS:
            yield (
                f"{each.question.id}: epsilon {each.epsilon:.0f} protects nobody: odds may change by a factor of "
                f"e^{each.epsilon:.0f}; take more noise"
            )


def _show_one(each: Outlook, asked: Asked) -> None:
    from privfm.dp.accounting import accountant_version
    from privfm.dp.events import total_steps

    question = each.question
    drawn = f"{each.expected_units:g} of {question.nominal_units} patients a step"
    retries = "" if asked.reserved_steps == asked.steps else f", and {asked.reserved_steps - asked.steps} for retries"
    show(f"noise multiplier   {each.noise_multiplier:.4f}")
    show(f"epsilon spent      {figure(each.epsilon, 4)} at delta {question.delta:g} ({accountant_version('pld')})")
    before = f", after {total_steps(question.spent)} on the ledger" if question.spent else ""
    show(f"steps              {asked.steps}{retries}{before}")
    show(f"sampling rate      {question.sample_rate:g}, {drawn}")
    show(f"noise              {each.noise_share:.3g} clip norms in each coordinate of the averaged gradient")
    show(f"a second such run  epsilon {figure(each.epsilon_after_second_run, 4)} for both together")


def _show_many(answer: Answer) -> None:
    columns = [
        Column("hospital", right=False),
        Column("nominal units"),
        Column("sampling rate"),
        Column("noise multiplier"),
        Column("epsilon"),
        Column("of allowed"),
        Column("after a second run"),
        *([Column("noise to signal")] if answer.forecasts else []),
    ]
    rows = [
        (
            each.question.id,
            str(each.question.nominal_units),
            f"{each.question.sample_rate:g}",
            f"{each.noise_multiplier:.4f}",
            figure(each.epsilon, 4),
            f"{each.question.epsilon or 0:g}",
            figure(each.epsilon_after_second_run, 4),
            *([f"{answer.forecasts[i].noise_to_signal:.3g}"] if answer.forecasts else []),
        )
        for i, each in enumerate(answer.outlooks)
    ]
    show_table(columns, rows)
    steps, retries = answer.asked.steps, answer.asked.reserved_steps - answer.asked.steps
    show(
        f"Epsilon is at delta {answer.asked.questions[0].delta:g}, after {steps} steps and {retries} more for retries."
    )


def _show_curves(answer: Answer) -> None:
    """Write a few points of each curve: one hospital down the page, many across it."""
    curve = answer.outlooks[0].curve
    if not curve:
        return
    along = sorted({round((len(curve) - 1) * k / (SHOWN - 1)) for k in range(SHOWN)})
    local_steps = answer.asked.local_steps
    unit = "steps" if local_steps is None else "rounds"
    at = [str(curve[i].steps // (local_steps or 1)) for i in along]
    show()
    if answer.asked.plan is None:
        show_table(
            [Column(unit), Column("epsilon")], [(x, figure(curve[i].epsilon)) for x, i in zip(at, along, strict=True)]
        )
        return
    columns = [Column(f"epsilon after {unit}:", right=False), *map(Column, at)]
    show_table(columns, [(o.question.id, *(figure(o.curve[i].epsilon) for i in along)) for o in answer.outlooks])
