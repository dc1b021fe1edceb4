"""What the property audit rests on: federations rehearsed with the run's numbers and with controls', pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from privfm.federation.planning import mechanism_of, update_weight
from privfm.plan import Plan
from privfm_attacks.disaggregation import METHODS
from privfm_attacks.distribution import FinalModel, read_final_models
from privfm_attacks.participation import Participation, leaving_out_in_turn
from privfm_attacks.pooling import Pooled, Scored, auc, pool
from privfm_attacks.rehearsal import Hospitals, Rehearsed, rehearse
from privfm_attacks.stand_in import Bank, StandIn

__all__ = ["CONTROL_HOSPITALS", "SHARE", "SHARES_OF_ALL", "Effort", "Told", "measure"]

DECIDES = "ridge"
"""The method of disaggregation by which a verdict is reached; the others are told beside it."""

SHARE = (0.1, 0.9)
"""Of a hospital's patients that have the property, in hospitals without and with it: how strong it is."""

SHARES_OF_ALL = (0.4, 0.6)
"""Of all patients, between which the final model is to tell: closer, since there are many patients."""

CONTROL_HOSPITALS, CONTROL_UNITS = 8, 12

POINTS = 15
"""Of a curve over rounds."""

Labels = Bool[np.ndarray, " hospitals"]


@dataclass(frozen=True)
class Effort:
    """How much is rehearsed.

    Args:
        federations: pooled for each figure, of long runs fewer; not below 10 for a verdict that means something.
        control_federations: the same for controls.
        rounds: of a control, and at most of the plan; longer runs are rehearsed in fewer rounds of more steps.
        models: final models of either kind to learn from, and as many to tell apart.
        patients: made up, of either kind.
    """

    federations: int = 20
    control_federations: int = 10
    rounds: int = 100
    models: int = 10
    patients: int = 1000


@dataclass(frozen=True)
class Told:
    """What sums of one pattern of participation told, by every method of disaggregation.

    Args:
        over_rounds: per cent of the sums that were seen, with the area that the decisive method made of them alone.
    """

    by: dict[str, Pooled]
    rank: int
    hospitals: int
    over_rounds: tuple[tuple[float, float], ...]

    @property
    def decisive(self) -> Pooled:
        return self.by[DECIDES]

    def __str__(self) -> str:
        pooled = self.decisive
        interval = f"{pooled.low:.2f} to {pooled.high:.2f}, p = {pooled.p:.2g}"
        return f"{pooled.auc:.2f} ({interval}; rank {self.rank} of {self.hospitals})"


def measure(plan: Plan, own: Participation, effort: Effort) -> tuple[dict[str, Told], dict[str, FinalModel]]:
    """Return what sums tell, and what final models do.

    * `run`: the plan's numbers, and who was in the run's sums;
    * `in turn`: the plan's numbers, with each hospital left out in turn, as far as the threshold allows;
    * `control`: no noise, equal hospitals, half of them in each sum;
    * `everybody`: no noise, equal hospitals, all of them in each sum.

    Of final models `run` and, without noise, `control`.
    """
    return _Rehearsals(plan, own, effort).measured()


class _Rehearsals:
    """Rehearsals with one stand-in.

    Args:
        plan: complete.
        own: the run's participation.
        effort: how much is rehearsed.
    """

    def __init__(self, plan: Plan, own: Participation, effort: Effort) -> None:
        self.plan, self.own, self.effort = plan, own, effort
        self.rng = np.random.default_rng([plan.seed, 0x9E3779B9])  # one audit of a run is as good as another
        self.stand_in, self.bank = StandIn(plan), Bank.made(plan.data.channels, effort.patients, plan.seed)

    def measured(self) -> tuple[dict[str, Told], dict[str, FinalModel]]:
        effort, hospitals = self.effort, _of_plan(self.plan)
        names = tuple(str(place) for place in range(CONTROL_HOSPITALS))
        control, everybody = self._half(names), Participation(names, (frozenset(names),) * effort.rounds)
        told = {
            "run": self._told(hospitals, [self.own] * self._federations),
            "in turn": self._told(hospitals, [leaving_out_in_turn(self.plan)] * self._federations),
            "control": self._told(_CONTROL, control),
            "everybody": self._told(_CONTROL, [everybody] * effort.control_federations),
        }
        return told, {
            "run": self._final(hospitals),
            "control": self._final(replace(hospitals, noise=_CONTROL.noise[:1])),
        }

    @property
    def _federations(self) -> int:
        """Fewer of long runs, but never below ten if that many are asked for: a thousand rounds in all."""
        rounds, asked = min(len(self.own.sums), self.effort.rounds), self.effort.federations
        return min(asked, max(10, 1000 // rounds))

    def _half(self, names: Sequence[str]) -> list[Participation]:
        """For every control federation, half of the hospitals in each round, drawn at random."""
        half = len(names) // 2

        def drawn() -> frozenset[str]:
            return frozenset(names[place] for place in self.rng.permutation(len(names))[:half])

        rounds, count = self.effort.rounds, self.effort.control_federations
        return [Participation(tuple(names), tuple(drawn() for _ in range(rounds))) for _ in range(count)]

    def _told(self, hospitals: Hospitals, participations: Sequence[Participation]) -> Told:
        runs = []
        for number, participation in enumerate(participations):
            rehearsed = _shorter(participation, self.effort.rounds)
            longer = max(1, round(len(participation.sums) / len(rehearsed.sums)))
            stretched = replace(hospitals, steps=hospitals.steps * longer)
            count = len(hospitals)
            labels = self.rng.permutation(count) < (count + number % 2) // 2
            runs.append((rehearse(self.stand_in, self.bank, stretched, rehearsed, labels, self.rng), labels))
        by = {
            name: pool([Scored(method(run.weights, run.readings), labels) for run, labels in runs], self.rng)
            for name, method in METHODS.items()
        }
        return Told(by, participations[0].rank, len(hospitals), _over_rounds(runs))

    def _final(self, hospitals: Hospitals) -> FinalModel:
        planned = self.plan.federation.rounds
        rounds = min(planned, max(1, self.effort.rounds // 10))
        steps = hospitals.steps * max(1, round(planned / rounds))
        stretched = replace(hospitals, steps=steps, share=SHARES_OF_ALL)
        return read_final_models(self.stand_in, self.bank, stretched, rounds, self.effort.models, self.rng)


def _over_rounds(runs: Sequence[tuple[Rehearsed, Labels]]) -> tuple[tuple[float, float], ...]:
    """How well hospitals are told apart by the first sums, mean over federations."""
    sums = len(runs[0][0].readings)
    points = []
    for seen in sorted(set(np.linspace(1, sums, POINTS).round().astype(int).tolist())):
        areas = [auc(METHODS[DECIDES](run.weights[:seen], run.readings[:seen]), labels) for run, labels in runs]
        points.append((100.0 * seen / sums, float(np.mean(areas))))
    return tuple(points)


_CONTROL = Hospitals(
    units=np.full(CONTROL_HOSPITALS, CONTROL_UNITS),
    rate=np.ones(CONTROL_HOSPITALS),
    noise=np.zeros(CONTROL_HOSPITALS),
    weight=np.ones(CONTROL_HOSPITALS),
    steps=1,
    share=SHARE,
)


def _of_plan(plan: Plan) -> Hospitals:
    mechanisms = [mechanism_of(plan, hospital) for hospital in plan.hospitals]
    return Hospitals(
        units=np.array([each.nominal_units for each in mechanisms]),
        rate=np.array([each.sample_rate for each in mechanisms]),
        noise=np.array([each.gradient_noise_multiplier for each in mechanisms]),
        weight=np.array([update_weight(plan, hospital) for hospital in plan.hospitals]),
        steps=plan.federation.local_steps,
        share=SHARE,
    )


def _shorter(participation: Participation, most: int) -> Participation:
    """At most about that many of the sums, evenly spread, and the first of each kind."""
    sums = participation.sums
    if len(sums) <= most:
        return participation
    kinds = list(dict.fromkeys(sums))[:most]
    places = {sums.index(kind) for kind in kinds} | set(np.linspace(0, len(sums) - 1, most).astype(int).tolist())
    return replace(participation, sums=tuple(sums[place] for place in sorted(places)))
