"""The canary audit: units with known gradients, in or out by a secret coin, told apart by the noised steps themselves.

It is a rehearsal: the mechanism of the plan runs all its steps on canaries alone, with orthonormal gradients of one
clip norm, and the attacker sees every noised sum before it is masked, which no coordinator does. A bound above the
epsilon that the plan claims means that the mechanism does not do what is charged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float

from privfm.dp.accounting import epsilon
from privfm.dp.coins import SystemCoins
from privfm.federation.planning import mechanism_of
from privfm.plan import HospitalPlan, Plan
from privfm_attacks.bench import INPUTS, OUTPUTS, Bench, distinct_hospitals, orthonormal
from privfm_attacks.bounds import clopper_pearson_bound, epsilon_of_mu, gaussian_pair_bound, mu_of_errors, one_run_bound
from privfm_attacks.downstream import Downstream, look_downstream
from privfm_attacks.verdicts import AuditResult, Finding, Plot, Verdict, histogram

__all__ = ["CONFIDENCE", "audit_canaries"]

CANARIES = 400
CONFIDENCE = 0.95
"""Of the bounds of all hospitals together, by steps, and of each of the two further downstream. What is above the claim
is taken anew, with other canaries, and the lower of the two counts. A false alarm is made by steps in one run of 400 at
most (5% twice), and by updates or sums, taken anew together, in four of 400 (10% twice): in five of 400 in all."""


@dataclass(frozen=True)
class _Scores:
    """Of each canary: the log likelihood ratio of what was released if it was in, and whether it was."""

    values: Float[np.ndarray, " canaries"]
    included: Bool[np.ndarray, " canaries"]

    @property
    def inside(self) -> Float[np.ndarray, " inside"]:
        return np.asarray(self.values[self.included])

    @property
    def outside(self) -> Float[np.ndarray, " outside"]:
        return np.asarray(self.values[~self.included])


def audit_canaries(plan: Plan, canaries: int = CANARIES) -> AuditResult:
    """Return the audit of a complete plan: a bound for every hospital, of those with equal numbers one.

    Args:
        canaries: of which each is in with probability 1/2.
    """
    equal = distinct_hospitals(plan)
    alpha = (1 - CONFIDENCE) / len(equal)
    rows = [_audit_hospital(plan, hospital, canaries, alpha) for hospital in equal]
    worst = max(rows, key=lambda row: row.bound - row.claim)
    further = _further(plan, worst, canaries, alpha)
    return AuditResult(
        name="canaries",
        verdict=_verdict(rows, worst, further),
        sentence=f"at least epsilon = {worst.bound:.2f} with {CONFIDENCE:.0%} confidence; could have seen about "
        f"{worst.ceiling:.3g}; half the noise would show {worst.halved:.2f}; sums over hospitals "
        f"alone show {further.sums:.2f}; "
        + (
            f"claimed {worst.claim:.2f}"
            if plan.privacy.dp
            else f"nothing is claimed, the plan's limit is {worst.claim:g}"
        ),
        attacker="one who sees every noised step sum of a hospital before masking, and put canaries into its data",
        null_means="It does not show that images are as hard to tell apart as the bound allows, nor that epsilon is as "
        "small as the bound: it shows that these canaries could not tell more.",
        findings=(*(finding for row in rows for finding in row.findings), *_downstream(worst, further)),
        figures={
            "bound": worst.bound,
            "confidence": CONFIDENCE,
            "claim": worst.claim,
            "ceiling": worst.ceiling,
            "control": min(row.control for row in rows),
            "halved": worst.halved,
            "clopper_pearson": worst.clopper_pearson,
            "clopper_pearson_ceiling": _clopper_pearson_ceiling(canaries // 2, plan.privacy.delta, alpha),
            "one_run": worst.one_run,
            "updates": further.updates,
            "updates_ceiling": further.updates_ceiling,
            "sums": further.sums,
            "sums_ceiling": further.sums_ceiling,
            "canary_clients": further.clients,
            "downstream_rounds": further.rounds,
        },
        plots=(
            Plot(
                "Scores of canaries",
                "log likelihood ratio of taking part",
                "canaries",
                "how many canaries scored how much; the further apart those inside and outside lie, the more a release "
                "tells of one",
                histogram({"inside": worst.scores.inside, "outside": worst.scores.outside}),
            ),
            Plot(
                "Scores of the same kind of canaries in sums over hospitals",
                "descent along a canary, in deviations of other weights",
                "canaries",
                "what is left of it for a coordinator, once optimisers and other hospitals' noise came between",
                histogram(further.scores),
            ),
        ),
    )


def _further(plan: Plan, worst: _Row, canaries: int, alpha: float) -> Downstream:
    """What is seen downstream; what is above the claim is taken anew, as for steps."""
    seen = look_downstream(plan, worst.hospital, canaries, alpha)
    if max(seen.updates, seen.sums) <= worst.claim:
        return seen
    again = look_downstream(plan, worst.hospital, canaries, alpha)
    return min((seen, again), key=lambda each: max(each.updates, each.sums))


def _downstream(worst: _Row, seen: Downstream) -> tuple[Finding, ...]:
    """Views in which optimiser and average weaken canaries: below the claim they say nothing, above it they do."""
    hospital, of = worst.hospital.id, f"{worst.hospital.id}, {seen.rounds} rounds: epsilon is at least"
    return (
        Finding(
            "seen in updates",
            seen.updates <= worst.claim,
            f"{of} {seen.updates:.2f}; {seen.updates_ceiling:.3g} without noise",
        ),
        Finding(
            "seen in sums", seen.sums <= worst.claim, f"{of} {seen.sums:.2f}; {seen.sums_ceiling:.3g} without noise"
        ),
        Finding(
            "seen in the final model",
            True,
            f"{hospital}, {seen.rounds} rounds: canary clients estimate epsilon = {seen.clients:.2f}; no bound",
        ),
    )


@dataclass(frozen=True)
class _Row:
    hospital: HospitalPlan
    scores: _Scores
    claim: float
    bound: float
    ceiling: float
    control: float
    halved: float
    clopper_pearson: float
    one_run: float

    @property
    def findings(self) -> tuple[Finding, ...]:
        return (
            Finding(
                "bound within the claim",
                self.bound <= self.claim,
                f"{self.hospital.id}: epsilon is at least {self.bound:.2f} by normal scores, "
                f"{self.clopper_pearson:.2f} by error counts, {self.one_run:.2f} whatever the scores; claimed "
                f"{self.claim:.2f}",
            ),
            Finding(
                "control caught",
                self.control > self.claim,
                f"{self.hospital.id}: without noise to speak of the same canaries show {self.control:.3g}",
            ),
        )


def _verdict(rows: list[_Row], worst: _Row, further: Downstream) -> Verdict:
    if any(row.bound > row.claim for row in rows) or max(further.updates, further.sums) > worst.claim:
        return Verdict.LEAK
    if any(row.ceiling <= row.claim or row.control <= row.claim for row in rows):
        return Verdict.INCONCLUSIVE
    return Verdict.NO_LEAK_DETECTED


def _audit_hospital(plan: Plan, hospital: HospitalPlan, canaries: int, alpha: float) -> _Row:
    delta, steps, bench = plan.privacy.delta, plan.planned_steps, Bench(plan, hospital)
    event = mechanism_of(plan, hospital).event(steps)
    scores = _score(bench, canaries, steps)
    claim = epsilon([event], delta) if plan.privacy.dp else plan.epsilon(hospital)
    bound = gaussian_pair_bound(scores.inside, scores.outside, delta, alpha)
    if bound > claim:
        again = _score(Bench(plan, hospital), canaries, steps)
        bound = min(bound, gaussian_pair_bound(again.inside, again.outside, delta, alpha))
    return _Row(
        hospital=hospital,
        scores=scores,
        claim=claim,
        bound=bound,
        ceiling=max(bound, _ceiling(bench.mechanism.sample_rate, steps, canaries, delta, alpha)),
        control=_with_noise(1e-3, plan, hospital, canaries, alpha),
        halved=_with_noise(0.5, plan, hospital, canaries, alpha),
        clopper_pearson=clopper_pearson_bound(scores.inside, scores.outside, 0.0, delta, alpha),
        one_run=one_run_bound(scores.values, scores.included, canaries // 4, delta, alpha),
    )


def _with_noise(share: float, plan: Plan, hospital: HospitalPlan, canaries: int, alpha: float) -> float:
    """What the deciding bound would be with a share of the noise: next to none is the control, half of it the power."""
    bench = Bench(plan, hospital)
    bench.mechanism = replace(bench.mechanism, noise_multiplier=bench.mechanism.noise_multiplier * share)
    scores = _score(bench, canaries, plan.planned_steps)
    return gaussian_pair_bound(scores.inside, scores.outside, plan.privacy.delta, alpha)


def _score(bench: Bench, canaries: int, steps: int) -> _Scores:
    """Run all steps with the canaries whose coin fell so; score each along its own direction.

    The score is the likelihood ratio of the mechanism as declared: of a step's value x, in clip norms, under
    (1 - q) N(0, sigma^2) + q N(1, sigma^2) against N(0, sigma^2).
    """
    if canaries > INPUTS * OUTPUTS:
        raise ValueError(f"canaries={canaries}: at most {INPUTS * OUTPUTS} directions are there")
    coins = SystemCoins()
    included = coins.stream("inclusion").words(canaries) % 2 == 1
    places = torch.from_numpy(np.flatnonzero(included))
    rows, inputs = orthonormal(places)
    releases = bench.releases(rows * bench.mechanism.clip_norm, coins, micro_batch=len(rows), inputs=inputs)
    declared = mechanism_of(bench.plan, bench.hospital)
    rate, variance = declared.sample_rate, declared.gradient_noise_multiplier**2
    values = np.zeros(canaries)
    for step in range(steps):
        clip_norm = releases.mechanism.clip_norm
        released = releases.gradient((1, 0, step)).vector[:canaries].double().numpy()
        seen = released * declared.divisor / clip_norm
        with np.errstate(divide="ignore"):
            values += np.logaddexp(np.log1p(-rate), np.log(rate) + (2 * seen - 1) / (2 * variance))
    return _Scores(values, included)


def _ceiling(rate: float, steps: int, canaries: int, delta: float, alpha: float) -> float:
    """What the deciding bound would be without any noise, when taking part at random alone blurs the scores."""
    if rate == 1.0:
        return epsilon_of_mu(1e3, delta)
    inside, outside = np.zeros(canaries // 2), np.zeros(canaries // 2)
    half = math.sqrt(steps * rate * (1 - rate))
    inside += rate * steps + half * np.where(np.arange(len(inside)) % 2, 1.0, -1.0)
    return gaussian_pair_bound(inside, outside, delta, alpha)


def _clopper_pearson_ceiling(each: int, delta: float, alpha: float) -> float:
    """What error counts show when there is no error."""
    upper = 1 - (alpha / 2) ** (1 / each)
    return epsilon_of_mu(mu_of_errors(upper, upper), delta)
