"""A search for settings, planned as one release before any of its runs: what is tried, and what that costs.

All trials have the same mechanism and are fixed before the first of them, so what the search costs is what one run of
as many steps as all trials together costs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privfm.dp.accounting import epsilon
from privfm.dp.calibration import NoiseRequest, calibrate_noise_under, calibrate_noises
from privfm.dp.events import SampledGaussian
from privfm.dp.filter import RdpFilter
from privfm.errors import BudgetExceeded, PlanError
from privfm.federation.cohort import gather_cohort
from privfm.federation.room import on_ledger
from privfm.objectives import Reconstructs, get_objective
from privfm.plan import HospitalPlan, Plan, parse_plan

__all__ = ["TRIABLE", "HospitalCost", "Search", "Trial", "plan_search"]

TRIABLE = (
    "optimizer.name",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "federation.strategy",
    "federation.server_learning_rate",
    "federation.server_momentum",
    "model.init",
    "model.trainable",
    "model.lora_rank",
    "privacy.clip_norm",
    "privacy.clip_quantile",
    "privacy.images_per_unit",
    "privacy.views",
)
"""Keys that change neither what a step costs nor what the loss means."""

MOST_TRIALS = 100


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Args:
        name: of its folder.
        values: what is tried, by the plan's key.
        plan: with the search's noise in it.
    """

    name: str
    values: Mapping[str, Any]
    plan: Plan


@dataclass(frozen=True)
class HospitalCost:
    """What a search costs one hospital when every trial uses up its retry reserve.

    Args:
        id: the hospital.
        noise_multiplier: of every step.
        epsilon_trial: of one trial alone.
        epsilon_search: of all of them.
        epsilon_allowed: for the search.
        epsilon_before, epsilon_after: everything on its ledger, before and after the search.
        cap_left: share of the lifetime cap's budget that is left then; None without a cap.
    """

    id: str
    noise_multiplier: float
    epsilon_trial: float
    epsilon_search: float
    epsilon_allowed: float
    epsilon_before: float
    epsilon_after: float
    cap_left: float | None


@dataclass(frozen=True)
class Search:
    """A search that was planned.

    Args:
        ledgers: the folder of the hospitals' ledgers.
        delta: of every epsilon.
        trials: in the order in which they run.
        costs: of each hospital.
    """

    ledgers: Path
    delta: float
    trials: tuple[Trial, ...]
    costs: tuple[HospitalCost, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "ledgers": str(self.ledgers),
            "delta": self.delta,
            "trials": [{"name": each.name, "values": dict(each.values)} for each in self.trials],
            "hospitals": [asdict(each) for each in self.costs],
        }


def plan_search(
    plan: Plan, tries: Mapping[str, Sequence[Any]], ledgers: Path, total_epsilon: float | None = None
) -> Search:
    """Return one trial for every combination of `tries`, with the noise that keeps all of them together in budget.

    Reads images to know the hospitals, and their ledgers; spends nothing.

    Args:
        plan: what all trials share. Hospitals that have a noise multiplier in it keep that.
        tries: values by key of the plan, see `TRIABLE`.
        ledgers: a folder of lasting ledgers; hospitals without one there have spent nothing.
        total_epsilon: for the whole search; by default the plan's epsilon. A hospital's own smaller limit holds.

    Raises:
        InputError: a key cannot be tried, a value is wrong, or the images will not do.
        BudgetExceeded: with the plan's own noise the search would cost more than is allowed, or than a lifetime cap has
            room for; or no noise would do.
        LedgerError: a ledger is damaged.
    """
    if not isinstance(get_objective(plan.objective.name, **plan.objective.options), Reconstructs):
        raise PlanError(
            f"objective.name {plan.objective.name}: trials are compared by their loss on public images, which says "
            "nothing where embeddings are compared; search with mae or simmim"
        )
    combinations = _combinations(tries)
    if not plan.privacy.dp:
        raise PlanError("privacy.dp: a search keeps its runs within an epsilon, and without noise none is; train them")
    if plan.evaluation.probe:
        raise PlanError("evaluation.probe: would look at held-out patients after every trial; leave it out of a search")
    total = plan.privacy.epsilon if total_epsilon is None else total_epsilon
    if not 0 < total <= 100:
        raise PlanError(f"--total-epsilon {total:g}: must be above 0 and at most 100")
    plan = _changed(plan, {"evaluation.probe": False, "privacy.epsilon": total})
    declared = plan.hospitals or tuple(
        HospitalPlan(id=name, nominal_units=units) for name, units in gather_cohort(plan).nominal_units.items()
    )
    costs = _costs(plan, declared, len(combinations), ledgers)
    paid = _with_noise(plan, declared, costs)
    trials = tuple(
        Trial(f"trial-{number}", values, _changed(paid, values)) for number, values in enumerate(combinations, start=1)
    )
    return Search(ledgers.absolute(), plan.privacy.delta, trials, costs)


def _combinations(tries: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    for key, values in tries.items():
        if key not in TRIABLE:
            raise PlanError(
                f"--try {key}: cannot be tried, for costs or losses of trials would not compare; keys that can: "
                f"{', '.join(TRIABLE)}"
            )
        if len(values) < 2 and len(tries) == 1:
            raise PlanError(f"--try {key}: one value is no search; give two or more, or train with it")
        if len(set(values)) < len(values):
            raise PlanError(f"--try {key}: a value is there twice; each trial costs privacy")
    count = math.prod(len(values) for values in tries.values())
    if not 2 <= count <= MOST_TRIALS:
        raise PlanError(f"--try: {count} trials; a search has 2 to {MOST_TRIALS}")
    return [dict(zip(tries, values, strict=True)) for values in itertools.product(*tries.values())]


def _changed(plan: Plan, values: Mapping[str, Any]) -> Plan:
    """Return the plan with other values; PlanError names the first that is wrong."""
    content, said = plan.model_dump(mode="json"), ", ".join(f"{key}={value}" for key, value in values.items())
    for key, value in values.items():
        section, name = key.split(".")
        content[section][name] = value
    return parse_plan(content, f"--try {said}")


def _costs(plan: Plan, declared: Sequence[HospitalPlan], trials: int, ledgers: Path) -> tuple[HospitalCost, ...]:
    """Return what as many trials cost each hospital, with noise for all of their steps and retries together."""
    steps, delta = plan.reserved_steps, plan.privacy.delta
    requests = [NoiseRequest(plan.epsilon(each), delta, plan.sample_rate(each), trials * steps) for each in declared]
    try:
        noises = [each.noise_multiplier for each in calibrate_noises(requests)]
    except ValueError as error:
        raise PlanError(f"privacy: delta {delta:g} over {trials} trials of {steps} steps: {error}") from None
    return tuple(
        _cost(plan, each, each.noise_multiplier or noise, trials, ledgers)
        for each, noise in zip(declared, noises, strict=True)
    )


def _cost(plan: Plan, hospital: HospitalPlan, noise: float, trials: int, ledgers: Path) -> HospitalCost:
    """Return a hospital's cost; under a lifetime cap that needs more noise than the search's epsilon, with that."""
    allowed, delta = plan.epsilon(hospital), plan.privacy.delta
    path = ledgers / f"{hospital.id}.sqlite"
    before, cap = on_ledger(path, hospital.id)
    if cap is not None and hospital.noise_multiplier is None:
        noise = max(noise, _noise_under(cap, plan, hospital, trials, before))
    event = SampledGaussian(plan.sample_rate(hospital), noise, plan.reserved_steps)
    search = event.repeated(trials)
    spent = epsilon([search], delta)
    if spent > allowed:
        raise BudgetExceeded(
            f"{hospital.id}: {trials} trials with noise multiplier {noise:g} would spend epsilon {spent:.3f} of "
            f"{allowed:g}; leave the noise out to have it computed, or try fewer values"
        )
    if cap is not None and not cap.admits([*before, search]):
        raise BudgetExceeded(
            f"{path}: the lifetime cap (epsilon {cap.epsilon:g} at delta {cap.delta:g}) has room for "
            f"{cap.rounds_that_fit([event], before)} trials of this kind, not {trials}; try fewer values, or leave the "
            "noise out to have it computed"
        )
    return HospitalCost(
        id=hospital.id,
        noise_multiplier=event.noise_multiplier,
        epsilon_trial=epsilon([event], delta),
        epsilon_search=spent,
        epsilon_allowed=allowed,
        epsilon_before=epsilon(before, delta),
        epsilon_after=epsilon([*before, search], delta),
        cap_left=None if cap is None else cap.remaining([*before, search]),
    )


def _noise_under(
    cap: RdpFilter, plan: Plan, hospital: HospitalPlan, trials: int, before: Sequence[SampledGaussian]
) -> float:
    steps = trials * plan.reserved_steps
    try:
        return calibrate_noise_under(cap, sample_rate=plan.sample_rate(hospital), steps=steps, spent=before)
    except ValueError:
        raise BudgetExceeded(
            f"{hospital.id}: its lifetime cap (epsilon {cap.epsilon:g} at delta {cap.delta:g}) leaves no room for "
            f"{steps} steps more, whatever the noise"
        ) from None


def _with_noise(plan: Plan, declared: Sequence[HospitalPlan], costs: Sequence[HospitalCost]) -> Plan:
    """Return the plan of every trial: its noise, and as its limit what one trial costs."""
    limits = [min(100.0, (math.floor(cost.epsilon_trial * 1e4) + 1) / 1e4) for cost in costs]
    hospitals = tuple(
        each.model_copy(update={"noise_multiplier": cost.noise_multiplier, "epsilon": limit})
        for each, cost, limit in zip(declared, costs, limits, strict=True)
    )
    privacy = plan.privacy.model_copy(update={"epsilon": max(limits)})
    return plan.model_copy(update={"hospitals": hospitals, "privacy": privacy})
