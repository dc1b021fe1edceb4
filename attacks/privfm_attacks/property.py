"""The property audit: whether sums tell which hospitals have a property, and what the final model tells of all of them.

Differential privacy for patients does not promise to hide what is common to a hospital's patients: a disease, a
scanner. What hides a hospital among the others is that only sums are seen, that who is in them does not change, and
that no hospital weighs much more than the others: one that does is most of every sum.
So the attack is judged by what it finds out and nothing else: it is a LEAK if, at the run's own noise and with the
run's own survivors, hospitals with the property are told from those without with a lower limit of the area under the
curve above `CLEAR`, and p below `ALPHA`. What a coordinator could bring about within the threshold, by leaving
hospitals out in turn, is told beside it, as a plan's prospect. So is what the final model tells, which is
what it learnt of everybody together and no hospital's secret.

Everything is rehearsed with made-up patients on a small stand-in for the network, with the noise that the plan
declares; see `privfm_attacks.rehearsal`. All thresholds, and the method of disaggregation that decides, were fixed
before anything was measured on a run.

Source: Kerkouche et al. 2023 (arXiv 2303.03908); Suri & Evans 2022 (arXiv 2109.06024).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from privfm.federation.planning import update_weight
from privfm.plan import Plan
from privfm_attacks.distribution import FinalModel
from privfm_attacks.measuring import CONTROL_HOSPITALS, SHARE, SHARES_OF_ALL, Effort, Told, measure
from privfm_attacks.participation import Participation, whole_cohort
from privfm_attacks.verdicts import AuditResult, Finding, Plot, Verdict

__all__ = ["ALPHA", "CAUGHT", "CLEAR", "audit_property"]

ALPHA, CAUGHT, CLEAR = 0.01, 0.9, 0.6


def audit_property(plan: Plan, participation: Participation | None = None, effort: Effort | None = None) -> AuditResult:
    """Return the audit of a complete plan.

    Args:
        participation: who was in the sums of a finished run; by default everybody in every round, as planned.
        effort: less of it for tests.
    """
    own = whole_cohort(plan) if participation is None or not participation.sums else participation
    weights = [update_weight(plan, hospital) for hospital in plan.hospitals]
    told, final = measure(plan, own, effort or Effort())
    return AuditResult(
        name="property",
        verdict=_verdict(told),
        sentence=_sentence(told),
        attacker="the coordinator, who sees every sum and the global model, and can make up patients with and without "
        f"the property; {SHARE[1]:.0%} of patients have it in one kind of hospital, {SHARE[0]:.0%} in the other",
        null_means="It does not show that a stronger property, another one, or one told by another attack stays "
        "hidden: it was rehearsed with one that is plain to see, on a small stand-in for the network.",
        findings=(*_findings(told, final), _weights(weights)),
        figures=_figures(told, final),
        plots=(_over_rounds(told),),
    )


def _sentence(told: Mapping[str, Told]) -> str:
    run = told["run"]
    found = "tell" if _clear(run) else "do not tell"
    why = ", for all are of the same hospitals" if run.rank == 1 else ""
    return f"the sums {found} which of two hospitals has a property: AUC {run}{why}; {_prospect(told['in turn'])}"


def _weights(weights: Sequence[float]) -> Finding:
    told = f"hospitals weigh {min(weights):.2g} to {max(weights):.2g} in a sum; the less equal, the more one stands out"
    return Finding("weights", True, told)


def _over_rounds(told: Mapping[str, Told]) -> Plot:
    curves = {_CURVES[name]: list(each.over_rounds) for name, each in told.items()}
    return Plot(
        "Of two hospitals, which has the property, as sums come in",
        "sums seen, in per cent of a run",
        "area under the curve",
        "at 0.5 nothing is known; a curve that climbs says that every further round gives hospitals away",
        curves,
    )


_CURVES = {
    "run": "this run's sums",
    "in turn": "hospitals left out in turn",
    "control": "no noise, half in every sum",
    "everybody": "no noise, all in every sum",
}


def _prospect(in_turn: Told) -> str:
    """What a plan's participation allows, judged without any run."""
    if in_turn.rank == 1:
        return "the threshold lets nobody be left out, so that all sums are alike"
    if not _clear(in_turn):
        return f"nor would they if hospitals were left out in turn, as the threshold allows: {in_turn}"
    return (
        f"a coordinator who left hospitals out in turn, as the threshold allows, could tell: {in_turn}; a threshold of "
        f"{in_turn.hospitals} rules that out"
    )


def _verdict(told: Mapping[str, Told]) -> Verdict:
    if _clear(told["run"]):
        return Verdict.LEAK
    controlled = _caught(told["control"]) and _blind(told["everybody"])
    return Verdict.NO_LEAK_DETECTED if controlled else Verdict.INCONCLUSIVE


def _clear(told: Told) -> bool:
    return told.decisive.low > CLEAR and told.decisive.p < ALPHA


def _caught(control: Told) -> bool:
    return control.decisive.auc >= CAUGHT and control.decisive.p < ALPHA


def _blind(everybody: Told) -> bool:
    return everybody.rank == 1 and everybody.decisive.low <= 0.5 <= everybody.decisive.high


def _findings(told: Mapping[str, Told], final: Mapping[str, FinalModel]) -> Iterator[Finding]:
    yield Finding("hospitals told apart", not _clear(told["run"]), f"by the run's own sums: AUC {told['run']}")
    yield Finding("what the plan allows", True, _prospect(told["in turn"]))
    yield Finding(
        "control caught",
        _caught(told["control"]),
        f"without noise, half of {CONTROL_HOSPITALS} hospitals in every sum: AUC {told['control']}",
    )
    yield Finding(
        "everybody in every sum",
        _blind(told["everybody"]),
        f"without noise: AUC {told['everybody']}; equations that are all the same cannot tell hospitals apart",
    )
    for name, model in final.items():
        yield Finding("final model", True, f"{name}: {_said(model)}")


def _said(model: FinalModel) -> str:
    few, many = SHARES_OF_ALL
    return (
        f"whether {few:.0%} or {many:.0%} of all patients have the property is told in {model.accuracy:.0%} of cases "
        f"({model.low:.0%} to {model.high:.0%}), worth {model.leaked:.1f} patients shown, at least "
        f"{model.leaked_low:.1f}"
    )


def _figures(told: Mapping[str, Told], final: Mapping[str, FinalModel]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, each in told.items():
        key = name.replace(" ", "_")
        pooled = each.decisive
        figures |= {f"{key}_auc": pooled.auc, f"{key}_low": pooled.low, f"{key}_high": pooled.high}
        figures |= {f"{key}_p": pooled.p, f"{key}_rank": each.rank}
        figures |= {f"{key}_auc_{method}": one.auc for method, one in each.by.items()}
    for name, model in final.items():
        figures |= {f"final_{name}_accuracy": model.accuracy, f"final_{name}_n_leaked": model.leaked}
        figures |= {f"final_{name}_auc": model.auc, f"final_{name}_n_leaked_low": model.leaked_low}
    return figures
