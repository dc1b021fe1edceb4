"""From a plan's few lines to every public number of a run, and to the values that mechanism and masking need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from privfm.dp.accounting import epsilon
from privfm.dp.calibration import NoiseRequest, calibrate_noises
from privfm.dp.events import SampledGaussian
from privfm.dp.mechanism import NOISE_TAIL, WIDEST, AdaptiveClipping, StepMechanism
from privfm.errors import PlanError
from privfm.federation.announcement import Announcement
from privfm.federation.network import backbone_spec
from privfm.federation.optimizers import FLOOR
from privfm.ids import HospitalId
from privfm.plan import HospitalPlan, ModelPlan, Plan, SecAggPlan
from privfm.secagg import Roster, RoundSpec, VectorSpec, largest_max_corrupt, smallest_threshold, some_of

__all__ = [
    "complete_plan",
    "mechanism_of",
    "round_spec",
    "threshold_of",
    "update_weight",
    "vector_spec",
]

NO_NOISE = 1e-6
"""Noise multiplier of a plan without differential privacy. It is charged as what it is: an epsilon of 1e12 or so."""

ADAM_STEP = 4.0
"""No Adam step with the usual moments is longer than that many learning rates (Kingma & Ba 2015, section 2.1)."""


def complete_plan(
    plan: Plan, nominal_units: Mapping[HospitalId, int], clip_norm: float, loss_bound: float = 1.0
) -> Plan:
    """Return the plan with everything filled in: hospitals, backbone, noise, clip norm, loss bound, threshold, clamp.

    Args:
        plan: what a person asked for. Its own hospitals, where it has some, take precedence.
        nominal_units: declared number of units of each hospital, when the plan names no hospitals.
        clip_norm, loss_bound: when the plan has none.

    Raises:
        PlanError: a noise multiplier would spend more than allowed, or the cohort cannot meet the masking's rules.
    """
    if not plan.privacy.dp and plan.optimizer.name == "adam-bc":
        raise PlanError("optimizer.name: adam-bc takes the noise's part out, and without dp there is none; take adam")
    privacy = plan.privacy.model_copy(update={"clip_norm": plan.privacy.clip_norm or clip_norm})
    evaluation = plan.evaluation
    if evaluation.local_loss:
        evaluation = evaluation.model_copy(update={"loss_bound": evaluation.loss_bound or loss_bound})
    plan = plan.model_copy(update={"privacy": privacy, "evaluation": evaluation, "model": _named_backbone(plan)})
    declared = plan.hospitals or tuple(HospitalPlan(id=name, nominal_units=n) for name, n in nominal_units.items())
    _check_delta(plan, declared)
    hospitals = tuple(sorted(_with_noise(plan, declared), key=lambda each: each.id))
    whole = plan.model_copy(update={"hospitals": hospitals})
    secagg = whole.secagg.model_copy(update={"threshold": threshold_of(whole), "clamp": _clamp(whole)})
    return Plan.model_validate(whole.model_copy(update={"secagg": secagg}).model_dump())


def _check_delta(plan: Plan, hospitals: tuple[HospitalPlan, ...]) -> None:
    """Refuse a delta at which publishing one whole patient now and then would count as private."""
    most = max((hospital.nominal_units for hospital in hospitals), default=1)
    if plan.privacy.delta * most >= 1:
        raise PlanError(f"privacy.delta: {plan.privacy.delta:g} with {most} units; take well under {1 / most:.2g}")


def _named_backbone(plan: Plan) -> ModelPlan:
    """Return the plan's model with the default backbone spelt out, so that a stored plan means the same for ever."""
    spec = backbone_spec(plan)
    shape = {"patch_size": spec.patch_size, "width": spec.width, "depth": spec.depth, "heads": spec.heads}
    return plan.model.model_copy(update={"backbone": spec.name, **shape})


def _with_noise(plan: Plan, hospitals: Sequence[HospitalPlan]) -> Iterator[HospitalPlan]:
    """Return every hospital with a noise multiplier that keeps it within its epsilon, retries included."""
    if not plan.privacy.dp:
        yield from (hospital.model_copy(update={"noise_multiplier": NO_NOISE}) for hospital in hospitals)
        return
    computed = iter(_calibrated(plan, [each for each in hospitals if each.noise_multiplier is None]))
    for hospital in hospitals:
        if hospital.noise_multiplier is None:
            yield hospital.model_copy(update={"noise_multiplier": next(computed)})
        else:
            _check_noise(plan, hospital, hospital.noise_multiplier)
            yield hospital


def _check_noise(plan: Plan, hospital: HospitalPlan, noise_multiplier: float) -> None:
    allowed = plan.epsilon(hospital)
    event = SampledGaussian(plan.sample_rate(hospital), noise_multiplier, plan.reserved_steps)
    spent = epsilon([event], plan.privacy.delta)
    if spent > allowed:
        raise PlanError(
            f"hospitals: {hospital.id}: noise_multiplier {noise_multiplier} would spend epsilon "
            f"{spent:.3f} of {allowed:g}; leave it out to have it computed"
        )


def _calibrated(plan: Plan, hospitals: Sequence[HospitalPlan]) -> list[float]:
    """Return the hospitals' noise, all worked out together: equal ones once, many in several processes."""
    delta, steps = plan.privacy.delta, plan.reserved_steps
    requests = [NoiseRequest(plan.epsilon(each), delta, plan.sample_rate(each), steps) for each in hospitals]
    try:
        return [each.noise_multiplier for each in calibrate_noises(requests)]
    except ValueError as error:
        targets = sorted({f"{request.epsilon:g}" for request in requests}, key=float)
        asked = targets[0] if len(targets) == 1 else f"{targets[0]} to {targets[-1]}"
        raise PlanError(f"privacy: epsilon {asked}, delta {delta:g} over {steps} steps: {error}") from None


def mechanism_of(plan: Plan, hospital: HospitalPlan) -> StepMechanism:
    """Return the mechanism of every noisy step of `hospital`; ValueError before the plan is complete."""
    if hospital.noise_multiplier is None or plan.privacy.clip_norm is None:
        raise ValueError(f"hospital {hospital.id!r} has no noise_multiplier or clip_norm; complete the plan first")
    quantile, clip_norm = plan.privacy.clip_quantile, plan.privacy.clip_norm
    return StepMechanism(
        sample_rate=plan.sample_rate(hospital),
        nominal_units=hospital.nominal_units,
        clip_norm=clip_norm,
        noise_multiplier=hospital.noise_multiplier,
        adaptive=None if quantile is None else AdaptiveClipping(quantile, start=clip_norm),
        noise_terms=plan.privacy.noise_terms,
    )


def update_weight(plan: Plan, hospital: HospitalPlan) -> float:
    """Return the hospital's public weight in the average: its nominal units over the mean of all hospitals'."""
    return hospital.nominal_units * len(plan.hospitals) / sum(each.nominal_units for each in plan.hospitals)


def threshold_of(plan: Plan) -> int:
    """Return how many hospitals must answer every stage; PlanError when no hospital would agree to it."""
    cohort, asked = len(plan.hospitals), plan.secagg.threshold
    if cohort < 3:
        raise PlanError(
            f"hospitals: {cohort} given; secure aggregation needs at least 3, or a sum shows one to another"
        )
    threshold = asked if asked is not None else _safe_threshold(cohort, plan.secagg.max_corrupt)
    if not smallest_threshold(cohort) <= threshold <= cohort:
        raise PlanError(
            f"secagg.threshold: {threshold} of {cohort} hospitals; take {smallest_threshold(cohort)} to {cohort}"
        )
    if plan.secagg.max_corrupt > largest_max_corrupt(cohort, threshold):
        raise PlanError(
            f"secagg.max_corrupt: {plan.secagg.max_corrupt} with {cohort} hospitals and threshold {threshold}; at most "
            f"{largest_max_corrupt(cohort, threshold)} can be withstood"
        )
    return threshold


def _safe_threshold(cohort: int, max_corrupt: int) -> int:
    """Return the least threshold that withstands `max_corrupt`, or the cohort when none does."""
    fitting = (t for t in range(smallest_threshold(cohort), cohort) if largest_max_corrupt(cohort, t) >= max_corrupt)
    return next(fitting, cohort)


def _clamp(plan: Plan) -> float:
    """Return the range of one value of a weighted update, from public numbers alone."""
    if plan.secagg.clamp is not None:
        return plan.secagg.clamp
    widest = max(update_weight(plan, hospital) * _reach(plan, hospital) for hospital in plan.hospitals)
    return float(f"{widest:.3g}")


def _reach(plan: Plan, hospital: HospitalPlan) -> float:
    """Return how far one weight can move in a round, noise included."""
    steps, rate = plan.federation.local_steps, plan.optimizer.learning_rate
    decay = 10 * rate * steps * plan.optimizer.weight_decay
    if plan.optimizer.name == "adam":
        return ADAM_STEP * rate * steps + decay
    mechanism = mechanism_of(plan, hospital)
    if plan.optimizer.name == "adam-bc":
        signal = 2 * mechanism.clip_norm / mechanism.noise_std
        return rate * steps * (NOISE_TAIL + signal) / math.sqrt(FLOOR) + decay
    widest = mechanism.clip_norm * (1 if mechanism.adaptive is None else WIDEST)
    noise = NOISE_TAIL * math.sqrt(steps) * mechanism.gradient_noise_multiplier / mechanism.divisor
    return rate * widest * (noise + 2 * steps) + decay


def vector_spec(plan: Plan, parameters: int) -> VectorSpec:
    """Return how an update of `parameters` values becomes integers; PlanError when the ring is too small."""
    if plan.secagg.clamp is None:
        raise ValueError("the plan has no clamp; complete it first")
    try:
        return VectorSpec.fit(
            "update", parameters, plan.secagg.clamp, clients=len(plan.hospitals), ring_bits=plan.secagg.modulus_bits
        )
    except ValueError as error:
        raise PlanError(f"secagg.modulus_bits: {plan.secagg.modulus_bits} is too small: {error}") from None


def loss_spec(plan: Plan, bound: float) -> VectorSpec:
    """Return how a hospital's weighted mean loss, clamped to `bound` a unit, becomes an integer."""
    reach = max(
        update_weight(plan, hospital) * mechanism_of(plan, hospital).mean_reach(bound) for hospital in plan.hospitals
    )
    return VectorSpec.fit("loss", 1, reach, clients=len(plan.hospitals), ring_bits=plan.secagg.modulus_bits)


def round_spec(
    plan: Plan, run: bytes, roster: Roster, announcement: Announcement, model: bytes, parameters: int
) -> RoundSpec:
    """Return the protocol's view of a round: what coordinator and hospitals must agree on, byte for byte.

    Raises:
        ValueError: the announcement is not of this plan: its round, its hospitals, or its model.
    """
    if announcement.round > plan.federation.rounds:
        raise ValueError(f"round {announcement.round}: the plan has {plan.federation.rounds}")
    strangers = set(announcement.cohort) - {hospital.id for hospital in plan.hospitals}
    if strangers:  # also members of the roster: two survivor sets share an honest signer within the plan's cohort alone
        raise ValueError(f"cohort: {some_of(strangers)} not in the plan")
    bound = plan.shown_loss_bound
    return RoundSpec(
        run=run,
        round=announcement.round,
        attempt=announcement.attempt,
        plan_hash=plan.hash(),
        roster=roster,
        model_hash=model,
        vectors=(vector_spec(plan, parameters), *(() if bound is None else (loss_spec(plan, bound),))),
        cohort=announcement.cohort,
        threshold=_need(plan.secagg),
    )


def _need(secagg: SecAggPlan) -> int:
    if secagg.threshold is None:
        raise ValueError("the plan has no threshold; complete it first")
    return secagg.threshold
