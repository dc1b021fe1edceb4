"""What a run would cost and whether it can learn, said before anything is spent."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from privfm.dp.accounting import epsilon
from privfm.dp.clipping import ClippingEngine
from privfm.dp.forecast import Forecast, forecast
from privfm.dp.statement import worst_composition
from privfm.federation.cohort import gather_cohort
from privfm.federation.device import pick_device, units_at_a_time
from privfm.federation.network import Learner, build_learner, trained
from privfm.federation.planning import complete_plan, mechanism_of, threshold_of, vector_spec
from privfm.federation.room import Room, room_for
from privfm.objectives import get_objective
from privfm.plan import HospitalPlan, Plan

__all__ = ["HospitalCheck", "PlanCheck", "check_plan"]


@dataclass(frozen=True)
class HospitalCheck:
    """What the plan means for one hospital.

    Args:
        id: the hospital.
        nominal_units: declared number of units.
        sample_rate: chance of a unit to be drawn in a step.
        noise_multiplier: noise standard deviation over clip norm.
        epsilon: spent when nothing crashes.
        epsilon_with_retries: spent when the whole retry reserve is used.
        epsilon_allowed: the limit.
        forecast: whether its gradients stand out of the noise.
    """

    id: str
    nominal_units: int
    sample_rate: float
    noise_multiplier: float
    epsilon: float
    epsilon_with_retries: float
    epsilon_allowed: float
    forecast: Forecast


@dataclass(frozen=True)
class PlanCheck:
    """A plan's price and prospects.

    Args:
        plan: with every number filled in; a clip norm that it leaves open is measured when training starts.
        delta: of every hospital's guarantee.
        hospitals: one row each.
        trainable: parameters that train, and so carry noise.
        threshold: hospitals that must finish every stage.
        dropouts_tolerated: hospitals that may be lost in a round.
        bytes_up: of one hospital in one round, key material apart.
        bytes_down: of one hospital in one round, key material apart.
        seconds: estimate for all rounds on this machine, start and probe apart.
        verdict: the worst of the hospitals' forecasts.
        rooms: what each hospital's lasting ledger says of it, where they were named.
        composed: what a unit with images at as many hospitals as the plan declares spends at most, retries included;
            None where at one.
    """

    plan: Plan
    delta: float
    hospitals: tuple[HospitalCheck, ...]
    trainable: int
    threshold: int
    dropouts_tolerated: int
    bytes_up: int
    bytes_down: int
    seconds: float
    verdict: str
    rooms: tuple[Room, ...] = ()
    composed: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            name: [asdict(each) for each in value] if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if name != "plan"
        }


def check_plan(plan: Plan, ledgers: Path | None = None) -> PlanCheck:
    """Return what the plan would cost; reads the images to know the hospitals, and spends nothing.

    Args:
        ledgers: a folder of lasting ledgers that the run would go on in.

    Raises:
        InputError: the plan or its images will not do.
    """
    get_objective(plan.objective.name, **plan.objective.options)  # what is wrong with it is told before images are read
    whole = complete_plan(plan, gather_cohort(plan).nominal_units, clip_norm=1.0)
    learner = build_learner(whole)
    parameters = trained(learner.network).numel()
    rows = tuple(_check_hospital(whole, hospital, parameters) for hospital in whole.hospitals)
    threshold = threshold_of(whole)
    return PlanCheck(
        plan=whole,
        delta=whole.privacy.delta,
        hospitals=rows,
        trainable=parameters,
        threshold=threshold,
        dropouts_tolerated=len(rows) - threshold,
        bytes_up=vector_spec(whole, parameters).ring_bits * parameters // 8,
        bytes_down=4 * parameters,
        seconds=_estimate_seconds(whole, learner),
        rooms=() if ledgers is None else tuple(room_for(whole, each, ledgers) for each in whole.hospitals),
        composed=_composed(whole),
        verdict=max((row.forecast.verdict for row in rows), key=["go", "doubtful", "no-go"].index),
    )


def _composed(plan: Plan) -> float | None:
    events = {each.id: [mechanism_of(plan, each).event(plan.reserved_steps)] for each in plan.hospitals}
    worst = worst_composition(events, plan.data.max_hospitals_per_patient, plan.privacy.delta)
    return None if worst is None else worst.epsilon


def _check_hospital(plan: Plan, hospital: HospitalPlan, parameters: int) -> HospitalCheck:
    mechanism, delta = mechanism_of(plan, hospital), plan.privacy.delta
    return HospitalCheck(
        id=hospital.id,
        nominal_units=mechanism.nominal_units,
        sample_rate=mechanism.sample_rate,
        noise_multiplier=mechanism.noise_multiplier,
        epsilon=epsilon([mechanism.event(plan.planned_steps)], delta),
        epsilon_with_retries=epsilon([mechanism.event(plan.reserved_steps)], delta),
        epsilon_allowed=plan.epsilon(hospital),
        forecast=forecast(
            parameters=parameters,
            nominal_units=mechanism.nominal_units,
            sample_rate=mechanism.sample_rate,
            noise_multiplier=mechanism.gradient_noise_multiplier,
            steps=plan.federation.rounds * plan.federation.local_steps,
            hospitals=len(plan.hospitals),
        ),
    )


def _estimate_seconds(plan: Plan, learner: Learner, units: int = 4) -> float:
    """Time the clipped gradients of a few blank units, and scale to all steps of all hospitals."""
    device, images = pick_device(plan.performance.device), plan.privacy.images_per_unit * plan.privacy.views
    network = learner.network.to(device).train()
    units = min(units, units_at_a_time(plan, learner, device))
    size = plan.data.image_size
    views = torch.zeros(units, images, plan.data.channels, size, size, device=device)
    engine = ClippingEngine(network, 1.0)
    for _ in range(2):  # the first pass warms up
        began = time.monotonic()
        rngs = [np.random.default_rng(unit) for unit in range(units)]
        engine.add(lambda rngs=rngs: learner.objective.unit_losses(network, views, rngs), units)  # type: ignore[misc]
        seconds = time.monotonic() - began
    drawn = sum(mechanism_of(plan, hospital).divisor for hospital in plan.hospitals)
    return seconds * drawn / units * plan.planned_steps
