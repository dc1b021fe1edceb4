"""What a hospital's guarantee costs and how far it reaches, worked out before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privfm.dp.accounting import epsilon, epsilon_over_steps
from privfm.dp.calibration import NoiseRequest, calibrate_noises
from privfm.dp.events import SampledGaussian

__all__ = ["BudgetQuestion", "CurvePoint", "Outlook", "look_ahead"]


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
    """

    id: str
    nominal_units: int
    sample_rate: float
    steps: int
    delta: float
    epsilon: float | None
    noise_multiplier: float | None = None


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
        epsilon: what all steps cost together.
        epsilon_after_second_run: what they and as many again would cost.
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


def look_ahead(
    questions: Sequence[BudgetQuestion], *, curve_at: Sequence[int] = (), processes: int | None = None
) -> tuple[Outlook, ...]:
    """Answers to `questions`, in their order; equal budgets are worked out once.

    Args:
        curve_at: numbers of steps at which every hospital's curve is read.
        processes: as for `calibrate_noises`.

    Raises:
        ValueError: a value out of its bounds, or neither an epsilon nor a noise multiplier.

    >>> one, = look_ahead([BudgetQuestion("north", 60, 0.5, 24, 1e-5, 8.0)], curve_at=[12, 24])
    >>> 7.96 <= one.epsilon == one.curve[-1].epsilon <= 8.0 < one.epsilon_after_second_run < 16.0
    True
    """
    requests = {i: _request(each) for i, each in enumerate(questions) if each.noise_multiplier is None}
    found = calibrate_noises(list(requests.values()), processes=processes)
    noises = {i: each.noise_multiplier for i, each in zip(requests, found, strict=True)}
    return tuple(
        _look(each, each.noise_multiplier or noises[i], sorted(set(curve_at))) for i, each in enumerate(questions)
    )


def _request(question: BudgetQuestion) -> NoiseRequest:
    if question.epsilon is None:
        raise ValueError(f"{question.id}: epsilon=None: needs an epsilon or a noise_multiplier")
    return NoiseRequest(question.epsilon, question.delta, question.sample_rate, question.steps)


def _look(question: BudgetQuestion, noise_multiplier: float, curve_at: Sequence[int]) -> Outlook:
    event = SampledGaussian(question.sample_rate, noise_multiplier, question.steps)
    along = epsilon_over_steps(event, curve_at, question.delta)  # cached: equal hospitals cost nothing
    return Outlook(
        question=question,
        noise_multiplier=noise_multiplier,
        epsilon=epsilon([event], question.delta),
        epsilon_after_second_run=epsilon([event.repeated(2)], question.delta),
        curve=tuple(CurvePoint(steps, spent) for steps, spent in zip(curve_at, along, strict=True)),
    )
