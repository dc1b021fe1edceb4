"""The reconstruction audit: who, of known candidates, is in the data, and what images can be had back from updates.

Two attacks decide. An informed adversary names one of `CANDIDATES` patients by the noised steps themselves, beside the
bound on how often anybody can; and images are rebuilt from what the plan's mechanism releases of one image on a network
chosen for being easy to attack. Both are made without noise as well, and must succeed there. What else is told, with
noise or without, of several steps, several images and a sum over hospitals, decides nothing: it says what each of these
leaves of an image.

No image of the run is touched. All thresholds were fixed before anything was measured on a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from privfm.federation.network import Learner, build_learner
from privfm.federation.planning import mechanism_of
from privfm.plan import HospitalPlan, OptimizerPlan, Plan
from privfm_attacks.bench import distinct_hospitals
from privfm_attacks.identification import CANDIDATES, Picked, share_interval
from privfm_attacks.informed import CAUGHT, STEPS, Identified, check_network, identify, pick_by_network, plot_of, told
from privfm_attacks.pictures import pictures_of
from privfm_attacks.rebuilding import NULLS, Closed, Iterated, Way
from privfm_attacks.target import VULNERABLE, Gallery, small, vulnerable, without_closed_form
from privfm_attacks.verdicts import AuditResult, Finding, Verdict

__all__ = ["CLEAR", "CONFIDENCE", "ReconstructionEffort", "audit_reconstruction"]

CONFIDENCE = 0.99
"""Of all that decides together."""

CLEAR = 30.0
"""Decibels on the patches that were seen, at which an image counts as rebuilt."""


@dataclass(frozen=True)
class ReconstructionEffort:
    """How much is tried.

    Args:
        trials: of the informed adversary at each hospital, where the plan has few steps.
        images: rebuilt in each way without noise.
        noised: images rebuilt with the plan's noise, where it has few steps; each is looked for among all candidates.
        iterated: images inverted by optimisation, with and without noise.
        iterations: for each.
    """

    trials: int = 1000
    images: int = 20
    noised: int = CANDIDATES
    iterated: int = 4
    iterations: int = 300


@dataclass(frozen=True)
class _Images:
    """What was rebuilt.

    Args:
        ways: without noise, and gradient inversion.
        noised: in closed form under the plan's mechanism.
        right: whether the right image of 100 was the most like it.
        control: the same without noise.
    """

    ways: tuple[Way, ...]
    noised: Way
    right: np.ndarray
    control: np.ndarray

    @property
    def shown(self) -> tuple[Way, ...]:
        """Those of single images, and of the sum."""
        return (*(way for way in self.ways if way.key != "patient"), self.noised)

    @property
    def best_noised(self) -> float:
        """With the plan's noise, by either attack."""
        return max(way.best for way in (self.noised, *self.ways) if way.key in ("noised", "inversion_noised"))


def audit_reconstruction(
    plan: Plan, learner: Learner | None = None, effort: ReconstructionEffort | None = None
) -> AuditResult:
    """Return the audit of a complete plan.

    Args:
        learner: the run's network and objective at the start of training; by default with fresh weights.
        effort: less of it for tests.
    """
    effort, learner = effort or ReconstructionEffort(), learner or build_learner(plan)
    equal = distinct_hospitals(plan)
    alpha = (1 - CONFIDENCE) / (len(equal) + 2)
    found = [identify(plan, hospital, effort.trials, alpha) for hospital in equal]
    worst = max(found, key=lambda one: one.low - one.bound)
    weakest = max(found, key=lambda one: one.bound)
    images = _rebuild(plan, weakest.hospital, effort)
    real = pick_by_network(plan, weakest.hospital, learner)
    checks = (*_checks(images, weakest, alpha), *check_network(real, weakest.bound, alpha))
    return AuditResult(
        name="reconstruction",
        verdict=_verdict(found, images, checks),
        sentence=_sentence(worst, images),
        attacker="one who sees every noised step of a hospital before masking, knows everything else in its data and "
        f"{CANDIDATES} candidates for the patient in question; and for images, one who knows weights and masks",
        null_means="It does not show that a patient's images cannot be told from their kind, nor that sums without "
        "noise are safe: it shows that these attacks did no better than the guarantee allows, with the plan's noise.",
        findings=(*(each for one in found for each in one.findings), *checks, *_notes(images, learner)),
        figures=_figures(worst, images, real),
        plots=(plot_of(worst, plan),),
        pictures=tuple(picture for way in images.shown for picture in pictures_of(way)),
    )


def _rebuild(plan: Plan, hospital: HospitalPlan, effort: ReconstructionEffort) -> _Images:
    mechanism, steps, target = mechanism_of(plan, hospital), plan.planned_steps, vulnerable(plan)
    gallery = Gallery.made(target.plan, CANDIDATES)
    closed, some = Closed(target, gallery), range(effort.images)
    count = min(effort.noised, max(10, STEPS // 4 // steps))
    everybody = np.random.default_rng(plan.seed).permutation(CANDIDATES)[:count].tolist()
    noised, right = closed.noised(mechanism, everybody, steps)
    bare = replace(mechanism, noise_multiplier=1e-9, sample_rate=1.0)
    _, control = closed.noised(bare, everybody, min(steps, 2))
    ways = (
        closed.one_image(some),
        closed.many_images(some),
        *_of_steps(closed, plan, some),
        closed.secure_sum(plan, effort.images),
        *_inverted(plan, hospital, effort),
    )
    return _Images(ways, noised, right, control)


def _of_steps(closed: Closed, plan: Plan, patients: range) -> Iterator[Way]:
    """Of plain descent, and of the plan's own adam; adam-bc is nothing without noise."""
    steps, own = max(2, plan.federation.local_steps), plan.optimizer
    descent = OptimizerPlan(name="sgd", learning_rate=own.learning_rate)
    yield closed.local_steps(patients, steps, descent, augmented=False)
    yield closed.local_steps(patients, steps, descent, augmented=True)
    if own.name == "adam":
        yield closed.local_steps(patients, steps, own, augmented=False)


def _inverted(plan: Plan, hospital: HospitalPlan, effort: ReconstructionEffort) -> Iterator[Way]:
    if not effort.iterated:
        return
    target = small(plan)
    attack = Iterated(target, Gallery.made(target.plan, max(20, effort.iterated)), effort.iterations)
    yield attack.plain(range(effort.iterated))
    yield attack.noised(mechanism_of(plan, hospital), range(effort.iterated), plan.planned_steps)


def _checks(images: _Images, weakest: Identified, alpha: float) -> Iterator[Finding]:
    exact, hits, trials = images.ways[0], int(images.right.sum()), len(images.right)
    low, high = share_interval(hits, trials, alpha)
    yield Finding(
        "images under noise",
        images.best_noised < CLEAR,
        f"at best {images.best_noised:.1f} dB on seen patches with the plan's noise; {CLEAR:g} dB would be a leak",
    )
    yield Finding(
        "images told apart under noise",
        low <= weakest.bound,
        f"the right image is the most like it in {hits / trials:.1%} of {trials} ({low:.1%} to {high:.1%}); no attack "
        f"can exceed {weakest.bound:.1%}",
    )
    yield Finding(
        "control rebuilt",
        exact.median >= CLEAR and float(images.control.mean()) >= CAUGHT,
        f"without noise {exact.median:.0f} dB in the middle, {min(one.psnr for one in exact.rebuilt):.0f} dB at worst, "
        f"on {VULNERABLE}; the right image is the most like it in {images.control.mean():.1%}",
    )


def _verdict(found: list[Identified], images: _Images, checks: tuple[Finding, ...]) -> Verdict:
    decisive = [check for check in checks if check.check != "control rebuilt"]
    if any(one.leaks for one in found) or not all(check.passed for check in decisive):
        return Verdict.LEAK
    controlled = all(one.caught and one.room for one in found) and all(check.passed for check in checks)
    return Verdict.NO_LEAK_DETECTED if controlled else Verdict.INCONCLUSIVE


def _sentence(worst: Identified, images: _Images) -> str:
    return (
        f"the right patient picked out of {CANDIDATES} in {told(worst.own, worst.alpha)} of trials; "
        + (f"no attack can exceed {worst.bound:.1%}" if worst.bound < 1 else "nothing is guaranteed")
        + f"; without noise {worst.control.rate:.1%}; patches rebuilt with "
        f"{images.noised.median:.0f} dB, where the average image has {images.noised.baseline:.0f} dB and an attack "
        f"without noise {images.ways[0].median:.0f} dB"
    )


def _notes(images: _Images, learner: Learner) -> Iterator[Finding]:
    """What decides nothing."""
    for way in (*images.ways, images.noised):
        share, low, high = way.better(1 - CONFIDENCE)
        matched = "" if way.matched is None else f"; {_matched(way.matched, len(way.rebuilt))}"
        yield Finding(
            "what is left of an image",
            True,
            f"{way.name}: {way.median:.1f} dB in the middle, {way.best:.1f} dB at best; the average image has "
            f"{way.baseline:.1f} dB, and is beaten in {share:.0%} ({low:.0%} to {high:.0%}){matched}",
        )
    why = without_closed_form(learner)
    yield Finding(
        "the run's own network", True, f"has {'a' if why is None else 'no'} closed form" + (f": {why}" if why else "")
    )


def _matched(hits: int, trials: int) -> str:
    low, high = share_interval(hits, trials, 1 - CONFIDENCE)
    return (
        f"in {hits / trials:.0%} ({low:.0%} to {high:.0%}) of {trials} sums a member's image fits better than any of "
        f"{NULLS} other sets'; by chance it would in {1 / (NULLS + 1):.0%}"
    )


def _figures(worst: Identified, images: _Images, real: Picked | None) -> dict[str, float]:
    low, high = worst.own.interval(worst.alpha)
    figures = {
        "candidates": float(CANDIDATES),
        "trials": float(len(worst.own.right)),
        "rate": worst.own.rate,
        "rate_low": low,
        "rate_high": high,
        "bound": worst.bound,
        "ceiling": worst.highest,
        "control": worst.control.rate,
        "control_of_drawn": worst.control.rate_of_drawn,
        "halved": worst.halved.rate,
        "confidence": CONFIDENCE,
        "matched_noised": float(images.right.mean()),
        "matched_control": float(images.control.mean()),
    }
    if real is not None:
        figures["real_rate"] = real.rate
        figures["real_low"], figures["real_high"] = real.interval(worst.alpha)
    for way in (*images.ways, images.noised):
        figures |= {} if way.matched is None else {f"matched_{way.key}": way.matched / len(way.rebuilt)}
        figures |= {f"psnr_{way.key}": way.median, f"best_{way.key}": way.best, f"average_{way.key}": way.baseline}
    return figures
