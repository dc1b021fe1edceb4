"""What a hospital's guarantee costs and how far it reaches, worked out before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from privfm.dp.accounting import epsilon, epsilon_over_steps
from privfm.dp.calibration import calibrate_noise, calibrate_noise_under, processes_for
from privfm.dp.events import SampledGaussian
from privfm.dp.filter import RdpFilter
from privfm.dp.workers import ask_workers, serve

__all__ = ["BudgetQuestion", "CurvePoint", "Outlook", "UnderCap", "look_ahead", "serve_outlooks", "under_cap"]

_WORKER = "from privfm.dp.outlook import serve_outlooks; serve_outlooks()"


@dataclass(frozen=True)
class BudgetQuestion:
    """One hospital's public numbers.

    Args:
        id: the hospital.
        nominal_units: declared privacy units.
        sample_rate: chance of a unit to be drawn in a step.
        steps: noisy steps, retries included.
        delta: chance that the guarantee may fail with.
        epsilon: what may be spent; None when the noise is given and nothing limits it.
        noise_multiplier: None to have it computed from `epsilon`.
        spent: on the hospital's ledger already; `epsilon` is for that and the steps together.
    """

    id: str
    nominal_units: int
    sample_rate: float
    steps: int
    delta: float
    epsilon: float | None
    noise_multiplier: float | None = None
    spent: tuple[SampledGaussian, ...] = ()


@dataclass(frozen=True)
class CurvePoint:
    """Epsilon after so many noisy steps."""

    steps: int
    epsilon: float


@dataclass(frozen=True)
class Outlook:
    """The answer to a question.

    Args:
        noise_multiplier: noise standard deviation over clip norm.
        epsilon: what all steps cost together, and what was spent before.
        epsilon_after_second_run: what that and as many steps again would cost.
        curve: on the way there.
    """

    question: BudgetQuestion
    noise_multiplier: float
    epsilon: float
    epsilon_after_second_run: float
    curve: tuple[CurvePoint, ...]

    @property
    def expected_units(self) -> float:
        """Units drawn in a step on average: the divisor of the noised sum."""
        return self.question.sample_rate * self.question.nominal_units

    @property
    def noise_share(self) -> float:
        """Noise standard deviation of one averaged gradient coordinate, in clip norms."""
        return self.noise_multiplier / self.expected_units


@dataclass(frozen=True)
class UnderCap:
    """What a lifetime cap makes of an outlook.

    Args:
        cap: its epsilon.
        steps: how many of the steps it has room for.
        fitting: how many such steps it has room for, however many are planned.
        noise_multiplier: at least the outlook's, with which it has room for all; None where no noise would do.
    """

    cap: float
    steps: int
    fitting: int
    noise_multiplier: float | None


def look_ahead(
    questions: Sequence[BudgetQuestion], *, curve_at: Sequence[int] = (), processes: int | None = None
) -> tuple[Outlook, ...]:
    """Answers to `questions`, in their order; equal budgets are worked out once.

    Args:
        curve_at: numbers of steps at which every hospital's curve is read.
        processes: as for `privfm.dp.calibration.calibrate_noises`.

    Raises:
        ValueError: a value out of its bounds, or neither an epsilon nor a noise multiplier.

    >>> one, = look_ahead([BudgetQuestion("north", 60, 0.5, 24, 1e-5, 8.0)], curve_at=[12, 24])
    >>> 7.96 <= one.epsilon == one.curve[-1].epsilon <= 8.0 < one.epsilon_after_second_run < 16.0
    True
    """
    budgets = [replace(each, id="", nominal_units=1) for each in questions]
    distinct, along = list(dict.fromkeys(budgets)), sorted(set(curve_at))
    replies: list[Any] = [None] * len(distinct)
    if (processes or processes_for(len(distinct))) > 1:
        jobs = [{"question": asdict(each), "curve_at": along} for each in distinct]
        replies = ask_workers(_WORKER, jobs, processes or processes_for(len(distinct)))
    answers = {
        each: _answer(each, along) if reply is None else _Answer(*reply)
        for each, reply in zip(distinct, replies, strict=True)
    }
    return tuple(_outlook(each, answers[key], along) for each, key in zip(questions, budgets, strict=True))


class _Answer(NamedTuple):
    noise_multiplier: float
    epsilon: float
    epsilon_after_second_run: float
    curve: Sequence[float]


def _answer(question: BudgetQuestion, curve_at: Sequence[int]) -> _Answer:
    noise_multiplier = question.noise_multiplier or _calibrated(question)
    event = SampledGaussian(question.sample_rate, noise_multiplier, question.steps)
    return _Answer(
        noise_multiplier,
        epsilon([*question.spent, event], question.delta),
        epsilon([*question.spent, event.repeated(2)], question.delta),
        epsilon_over_steps(event, curve_at, question.delta, before=question.spent),
    )


def _calibrated(question: BudgetQuestion) -> float:
    if question.epsilon is None:
        raise ValueError("epsilon=None: needs an epsilon or a noise_multiplier")
    return calibrate_noise(
        epsilon=question.epsilon,
        delta=question.delta,
        sample_rate=question.sample_rate,
        steps=question.steps,
        spent=question.spent,
    )


def _outlook(question: BudgetQuestion, answer: _Answer, curve_at: Sequence[int]) -> Outlook:
    curve = tuple(CurvePoint(steps, spent) for steps, spent in zip(curve_at, answer.curve, strict=True))
    return Outlook(question, answer.noise_multiplier, answer.epsilon, answer.epsilon_after_second_run, curve)


def under_cap(outlook: Outlook, cap: RdpFilter) -> UnderCap:
    """What the lifetime cap of the hospital's ledger would let happen.

    >>> one, = look_ahead([BudgetQuestion("north", 60, 0.5, 24, 1e-5, 8.0)])
    >>> found = under_cap(one, RdpFilter.for_cap(8.0, 1e-5))
    >>> found.steps < 24, found.noise_multiplier > one.noise_multiplier
    (True, True)
    """
    asked, noise_multiplier = outlook.question, outlook.noise_multiplier
    fitting = cap.steps_that_fit(SampledGaussian(asked.sample_rate, noise_multiplier, 1), asked.spent)
    if fitting >= asked.steps:
        return UnderCap(cap.epsilon, asked.steps, fitting, noise_multiplier)
    try:
        needed = calibrate_noise_under(cap, sample_rate=asked.sample_rate, steps=asked.steps, spent=asked.spent)
    except ValueError:
        return UnderCap(cap.epsilon, fitting, fitting, None)
    return UnderCap(cap.epsilon, fitting, fitting, needed)


def serve_outlooks() -> None:
    """Be a worker of `look_ahead`."""
    serve(_reply)


def _reply(job: dict[str, Any]) -> _Answer:
    spent = tuple(SampledGaussian(**event) for event in job["question"].pop("spent"))
    return _answer(BudgetQuestion(**job["question"], spent=spent), job["curve_at"])
