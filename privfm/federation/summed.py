"""When a run bears the second guarantee: for readers who only ever see sums over hospitals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from privfm.dp.final_model import SummedHospital, final_model_guarantee
from privfm.dp.statement import FinalModelGuarantee
from privfm.federation.planning import mechanism_of, update_weight, vector_spec
from privfm.federation.records import RoundRecord
from privfm.plan import HospitalPlan, Plan

__all__ = ["sum_guarantee"]


def sum_guarantee(
    plan: Plan, records: Sequence[RoundRecord], rounds_charged: Mapping[str, int], parameters: int
) -> FinalModelGuarantee | None:
    """Return the guarantee of a finished run against readers of sums, or None where it is not proved.

    It is proved for one step of plain gradient descent a round at a fixed clip norm, when rounds were computed once
    each, and the clamp has room for every declared unit pulling one value the same way; see `privfm.dp.final_model`.

    Args:
        records: of the run's rounds.
        rounds_charged: by hospital, of this run.
        parameters: length of an update.
    """
    if not _proved_for(plan) or not records or any(count > len(records) for count in rounds_charged.values()):
        return None
    summed = {hospital.id: _summed(plan, hospital, parameters) for hospital in plan.hospitals}
    try:
        return final_model_guarantee(
            summed, [record.survivors for record in records], values=parameters, delta=plan.privacy.delta
        )
    except ValueError:  # the numbers do not bear the proof
        return None


def _proved_for(plan: Plan) -> bool:
    optimizer, federation = plan.optimizer, plan.federation
    descent = optimizer.name == "sgd" and optimizer.weight_decay == 0 and federation.local_steps == 1
    return descent and plan.privacy.clip_quantile is None and not plan.evaluation.local_loss


def _summed(plan: Plan, hospital: HospitalPlan, parameters: int) -> SummedHospital:
    mechanism, spec = mechanism_of(plan, hospital), vector_spec(plan, parameters)
    scale = plan.optimizer.learning_rate * update_weight(plan, hospital) / (mechanism.divisor * spec.step)
    return SummedHospital(
        sample_rate=mechanism.sample_rate,
        noise_multiplier=mechanism.noise_multiplier,
        unit_reach=scale * mechanism.clip_norm,
        most_units=mechanism.nominal_units,
        clamp=float(spec.levels),
    )
