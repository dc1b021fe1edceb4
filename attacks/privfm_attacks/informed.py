"""The informed adversary at a plan's hospitals: with its noise, with half of it, and with next to none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from privfm.federation.network import Learner
from privfm.federation.planning import mechanism_of
from privfm.plan import HospitalPlan, Plan
from privfm_attacks.bench import Bench
from privfm_attacks.candidates import too_costly, unit_gradients
from privfm_attacks.identification import (
    CANDIDATES,
    GROUPS,
    Picked,
    highest_rate,
    pick_on_bench,
    pick_real,
    rate_allowed,
    reconstruction_bound,
)
from privfm_attacks.verdicts import Finding, Plot

__all__ = ["CAUGHT", "STEPS", "Identified", "check_network", "identify", "pick_by_network", "plot_of", "told"]

CAUGHT = 0.95
"""Share of trials at which an attack has succeeded."""

FEWEST = 20
"""Trials with the patient among those drawn, below which a high share of them says nothing."""

NEXT_TO_NONE = 1e-3
"""Of the noise, in controls."""

STEPS = 50_000
"""Noisy steps, about, over which trials are spread where a plan has many."""


@dataclass(frozen=True)
class Identified:
    """What the informed adversary found at a hospital.

    Args:
        own, control, halved: with the plan's noise, next to none, and half of it.
        bound: on how often anybody can be right.
        highest: how often anybody can be right without any noise.
        alpha: 1 - confidence of each interval.
    """

    hospital: HospitalPlan
    own: Picked
    control: Picked
    halved: Picked
    bound: float
    highest: float
    alpha: float

    @property
    def low(self) -> float:
        return self.own.interval(self.alpha)[0]

    @property
    def leaks(self) -> bool:
        return self.low > self.bound or _gives_away(self.own)

    @property
    def caught(self) -> bool:
        """Whether the attack succeeds without noise on those who took part."""
        return self.control.rate_of_drawn >= CAUGHT

    @property
    def room(self) -> bool:
        """Whether success, where it is complete, would be beyond the bound."""
        return self.control.interval(self.alpha)[0] > self.bound

    @property
    def findings(self) -> tuple[Finding, ...]:
        name = self.hospital.id
        return (
            Finding(
                "right patient within the bound",
                not self.leaks,
                f"{name}: picked out of {CANDIDATES} in {told(self.own, self.alpha)} of {len(self.own.right)} trials; "
                + (
                    f"no attack can exceed {self.bound:.1%}; half the noise would show {self.halved.rate:.1%}"
                    if self.bound < 1
                    else f"nothing is guaranteed, and {CAUGHT:.0%} of those who took part is a leak"
                ),
            ),
            Finding(
                "control caught",
                self.caught,
                f"{name}: without noise to speak of in {told(self.control, self.alpha)}, and in "
                f"{self.control.rate_of_drawn:.1%} of the trials in which the patient took part",
            ),
            *self._room_told(),
        )

    def _room_told(self) -> Iterator[Finding]:
        """Nothing to tell of where the attack has succeeded."""
        if not self.leaks:
            detail = (
                f"{self.hospital.id}: without noise who takes part at random is picked in {self.highest:.1%} at most, "
                f"and {self.bound:.1%} is allowed"
            )
            advice = "" if self.room else ", so that no success could break it: a smaller epsilon would"
            yield Finding("room above the bound", self.room, detail + advice)


def identify(plan: Plan, hospital: HospitalPlan, most: int, alpha: float) -> Identified:
    """Return what the adversary finds in at most so many trials, fewer where the plan has many steps."""
    bench, steps = Bench(plan, hospital), plan.planned_steps
    event = mechanism_of(plan, hospital).event(steps)
    trials = min(most, max(GROUPS, STEPS // steps))
    few = min(trials, 4 * GROUPS)
    return Identified(
        hospital,
        own=pick_on_bench(bench, steps, trials),
        control=pick_on_bench(bench, steps, few, share=NEXT_TO_NONE),
        halved=pick_on_bench(bench, steps, few, share=0.5),
        bound=reconstruction_bound(event),
        highest=highest_rate(event),
        alpha=alpha,
    )


def plot_of(one: Identified, plan: Plan) -> Plot:
    """Return how often the right patient was picked, against what each epsilon allows."""
    event, limit = mechanism_of(plan, one.hospital).event(plan.planned_steps), math.log(CANDIDATES)
    curve = [(float(epsilon), rate_allowed(event, float(epsilon))) for epsilon in np.linspace(0.0, limit, 41)]
    levels = {"picked": one.own.rate, "picked with half the noise": one.halved.rate, "with none": one.control.rate}
    return Plot(
        f"The right patient picked out of {CANDIDATES}",
        "epsilon, by the accountant's curve",
        "share of trials",
        "the accountant gives a delta for every epsilon, and each of these pairs bounds how often anybody can be "
        "right: the lowest point of the curve is the most that any attack can reach, the level lines are what was",
        {"no attack beyond": curve} | {name: [(0.0, rate), (limit, rate)] for name, rate in levels.items()},
    )


def pick_by_network(plan: Plan, hospital: HospitalPlan, learner: Learner) -> Picked | None:
    """The same with gradients of the run's own network; None where they would take minutes."""
    if too_costly(learner):
        return None
    declared, steps = mechanism_of(plan, hospital), plan.planned_steps
    fixed = replace(declared, adaptive=None, noise_multiplier=declared.gradient_noise_multiplier)
    rows = unit_gradients(learner, CANDIDATES, plan.seed)
    return pick_real(fixed, rows, steps, min(400, max(40, STEPS // 4 // steps)))


def _gives_away(picked: Picked) -> bool:
    """Whether whoever takes part is known, as without any noise: also where a bound allows it."""
    return picked.rate_of_drawn >= CAUGHT and int(picked.drawn.sum()) >= FEWEST


def check_network(real: Picked | None, bound: float, alpha: float) -> Iterator[Finding]:
    """Yield whether trials with the network's own gradients stayed within the bound."""
    if real is None:
        yield Finding("right patient by the run's own network", True, "not tried: gradients would take minutes")
    else:
        yield Finding(
            "right patient by the run's own network",
            real.interval(alpha)[0] <= bound and not _gives_away(real),
            f"gradients of made-up patients on it give the right one away in {told(real, alpha)} of {len(real.right)} "
            "trials",
        )


def told(picked: Picked, alpha: float) -> str:
    """Return the rate and its limits in words."""
    low, high = picked.interval(alpha)
    return f"{picked.rate:.1%} ({low:.1%} to {high:.1%})"
