"""`privfm budget plan`: noise for a guarantee, what a given noise costs, and how far that goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privfm.dp.figures import figure
from privfm.errors import BudgetExceeded, PlanError
from privfm_cli.budget_answer import Answer, show_answer, to_json, under_caps, warn_of_caps, warn_of_delta
from privfm_cli.budget_questions import Asked, after_ledgers, from_flags, from_plan
from privfm_cli.console import say, show_json

if TYPE_CHECKING:
    from privfm.dp.forecast import Forecast
    from privfm.dp.outlook import Outlook

__all__ = ["plan"]

MANY = 24
"""From so many different budgets on, curves are drawn and listed only when they are asked for: they take a minute."""


def plan(
    plan_file: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN.toml]", show_default=False, help="Many hospitals: its [[hospitals]]."),
    ] = None,
    nominal_units: Annotated[int | None, typer.Option(min=1, help="Declared number of patients.")] = None,
    sample_rate: Annotated[float | None, typer.Option(help="A patient's chance to be drawn in a step.")] = None,
    expected_units: Annotated[float | None, typer.Option(help="Instead: patients drawn in a step, on average.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Noisy steps, retries included.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Instead: rounds of the federation.")] = None,
    local_steps: Annotated[
        int | None,
        typer.Option(min=1, show_default="1, or the file's", help="Noisy steps in a round, beside --rounds."),
    ] = None,
    retry_rounds: Annotated[
        int | None,
        typer.Option(min=0, show_default="2, or the file's", help="Rounds a crash may cost, beside --rounds."),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(show_default="8.0, or the file's", help="What may be spent.")] = None,
    delta: Annotated[
        float | None, typer.Option(show_default="1e-05, or the file's", help="Chance that the guarantee may fail with.")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Instead of --epsilon: noise standard deviation over clip norm.")
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option(metavar="DIR|LEDGER", help="Count what these ledgers have spent already: --epsilon is for both."),
    ] = None,
    parameters: Annotated[
        int | None,
        typer.Option(min=1, show_default="a plan file's", help="Trained parameters, to forecast whether it can learn."),
    ] = None,
    hospitals: Annotated[
        int | None, typer.Option(min=1, show_default="1", help="For the forecast: equal hospitals that are averaged.")
    ] = None,
    curve: Annotated[
        bool | None, typer.Option("--curve/--no-curve", show_default="unless many", help="Epsilon along the way.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|.png", help="Draw the curves. An existing file is replaced.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Say how much noise a guarantee needs, or what a given noise costs. Nothing is spent.

    Flags describe one hospital, PLAN.toml as many as its [[hospitals]], each with its own patients, sampling rate
    and epsilon. Flags beside a file ask what if: each stands in place of what the file says, at every hospital.
    Exit code 3 when ledgers (--after) have spent the epsilon already.
    """
    typed = {
        "--nominal-units": nominal_units,
        "--sample-rate": sample_rate,
        "--expected-units": expected_units,
        "--steps": steps,
        "--rounds": rounds,
        "--local-steps": local_steps,
        "--retry-rounds": retry_rounds,
        "--epsilon": epsilon,
        "--delta": delta,
        "--noise-multiplier": noise_multiplier,
    }
    flags = {flag: value for flag, value in typed.items() if value is not None}
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise PlanError(f"--plot {plot}: must end in .svg or .png")
    if plan_file is not None and hospitals is not None:
        raise PlanError(
            f"--hospitals: averaged are those of {plan_file}; change its [[hospitals]], or leave the file out"
        )
    asked = from_flags(flags) if plan_file is None else from_plan(plan_file, flags)
    if after is not None:
        asked, strangers = after_ledgers(asked, after)
        if strangers:
            say(f"no ledger under {after}, taken to have spent nothing: {', '.join(strangers)}")
    warn_of_delta(asked)
    for remark in asked.remarks:
        say(remark)
    answer = _answer(asked, parameters, hospitals or len(asked.questions), curve=True if plot else curve)
    if plot is not None:
        from privfm_cli.budget_plot import draw

        draw(answer.outlooks, plot, local_steps=asked.local_steps, caps=under_caps(answer))
        say(f"drawn: {plot}")
    warn_of_caps(answer)
    if as_json:
        show_json(to_json(answer))
    else:
        show_answer(answer)


def _answer(asked: Asked, parameters: int | None, averaged: int, *, curve: bool | None) -> Answer:
    from privfm.dp.outlook import look_ahead

    left_out = []
    different = len({replace(each, id="", nominal_units=1) for each in asked.questions})
    wanted = different < MANY if curve is None else curve
    if curve is None and not wanted:
        left_out.append(f"no curves: {different} different budgets would take long; --curve has them worked out")
    try:
        _refuse_what_is_spent(asked)
        outlooks = look_ahead(asked.questions, curve_at=asked.curve_at() if wanted else ())
    except ValueError as error:
        raise PlanError(f"this cannot be planned: {error}") from None
    for each in outlooks:
        if each.question.epsilon is not None and each.epsilon > each.question.epsilon:
            if each.question.spent or asked.what_if:  # the plan's limit is for its run alone, or this is a question
                before = "with what its ledger has spent, " if each.question.spent else ""
                left_out.append(
                    f"{each.question.id}: {before}epsilon {figure(each.epsilon)}, above the "
                    f"{each.question.epsilon:g} that the plan allows its run"
                )
                continue
            raise PlanError(
                f"hospitals: {each.question.id}: noise_multiplier {each.noise_multiplier} would spend epsilon "
                f"{each.epsilon:.3f} of {each.question.epsilon:g}; leave it out to have it computed"
            )
    count = parameters or _count(asked)
    if count is None:
        left_out.append("no forecast of whether this can learn: say how many parameters train, with --parameters")
    return Answer(
        asked, outlooks, () if count is None else _forecasts(asked, outlooks, count, averaged), tuple(left_out)
    )


def _refuse_what_is_spent(asked: Asked) -> None:
    from privfm.dp.accounting import epsilon

    for each in asked.questions:
        if not each.spent or each.epsilon is None or each.noise_multiplier is not None:
            continue
        spent = epsilon(each.spent, each.delta)
        if spent >= each.epsilon:
            raise BudgetExceeded(
                f"{each.id}: epsilon {figure(spent)} is already spent, of {each.epsilon:g} for that and this run "
                "together; ask for a larger --epsilon, or what a --noise-multiplier would cost"
            )


def _count(asked: Asked) -> int | None:
    """Return how many parameters a plan file trains, which takes torch to find out."""
    if asked.plan is None:
        return None
    from privfm.federation.network import build_learner, trained

    return trained(build_learner(asked.plan).network).numel()


def _forecasts(asked: Asked, outlooks: tuple[Outlook, ...], parameters: int, averaged: int) -> tuple[Forecast, ...]:
    from privfm.dp.forecast import forecast

    return tuple(
        forecast(
            parameters=parameters,
            nominal_units=each.question.nominal_units,
            sample_rate=each.question.sample_rate,
            noise_multiplier=asked.gradient_noise_multiplier(each),
            steps=asked.steps,
            hospitals=averaged,
        )
        for each in outlooks
    )
