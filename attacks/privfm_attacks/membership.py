"""The membership audit: can somebody with the encoder tell whether a patient was among those it was trained on?

It reads patients' images, in the clear: of built-in data they are nobody's; of a hospital's own they have to be asked
for, and what is found stays at the hospital.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from privfm.data import ImageSet, load_images
from privfm.federation.cohort import Cohort
from privfm.federation.network import Learner
from privfm.federation.stating import BUILT_IN
from privfm.plan import Plan
from privfm_attacks.claims import Claim
from privfm_attacks.overfitting import overfit
from privfm_attacks.signals import SIGNALS, images_of, pooled_features, relative_signals
from privfm_attacks.telling_apart import Progress, ToldApart, roc, roc_band, tell_apart, tell_kinds_apart
from privfm_attacks.verdicts import AuditResult, Finding, Plot, Verdict

__all__ = ["CAUGHT", "FEWEST", "MembershipEffort", "audit_membership", "strangers", "tell_members"]

CAUGHT = 0.75
"""Area under the curve that the control must reach, or nothing is concluded."""

WIDEST = 0.05
"""Half of an interval that still says something where it reaches beyond what is allowed, or nothing is claimed."""

NO_ROOM = 0.99
"""Area that may be reached, from which on no attack could show too much."""

FEWEST = 20
"""Patients on a side."""


@dataclass(frozen=True)
class MembershipEffort:
    """How hard to look.

    Args:
        patients: on a side, at most.
        images: of each.
        draws: masks, views and parts of an image.
        control_images: that the control is overfitted on.
        control_steps, control_seconds: of its training, at most.
    """

    patients: int = 400
    images: int = 4
    draws: int = 8
    control_images: int = 200
    control_steps: int = 2_500
    control_seconds: float = 240.0


def audit_membership(
    learner: Learner,
    start: Learner,
    cohort: Cohort,
    effort: MembershipEffort = MembershipEffort(),
    progress: Progress = lambda stage, done, total: None,
    others: ImageSet | None = None,
) -> AuditResult:
    """Return the audit of a finished run.

    Args:
        learner, start: the network after and before the run.
        cohort: the run's images; members are those trained on.
        progress: told a stage, and how much of it is done.
        others: patients of the same kind who were not, of a folder: figures about them stay where they are, also of a
            run on built-in data. By default those whom the run held out.
    """
    plan = learner.plan
    known = strangers(plan, cohort, effort.patients) if others is None else [others]
    sides = list(cohort.images.values()), known
    local = plan.data.source not in BUILT_IN or others is not None
    return tell_members(learner, start, *sides, Claim.of(plan), SIGNALS, effort, progress, local=local)


def tell_members(
    learner: Learner,
    start: Learner,
    members: Sequence[ImageSet],
    others: Sequence[ImageSet],
    claim: Claim,
    signals: Sequence[str],
    effort: MembershipEffort,
    progress: Progress,
    *,
    local: bool,
) -> AuditResult:
    """Return the audit of a network of which it is said whom it was trained on and whom not.

    Args:
        learner, start: the network, and one like it that never saw anybody.
        claim: what a guarantee lets anybody tell.
        signals: that the attack may use, from `SIGNALS`.
        progress: told a stage, and how much of it is done.
        local: whether images are of patients, so that figures stay at the hospital.
    """
    rng = np.random.default_rng(learner.plan.seed)
    inside, outside = (_some(side, effort.patients, effort.images, rng) for side in (members, others))
    if min(len(inside), len(outside)) < FEWEST:
        return _too_few(len(inside), len(outside), local=local)
    blind = _told_by(start, inside, outside, rng)
    control = _Control.made(start, inside, signals, effort, rng, progress)
    scores: list[Float[np.ndarray, " patients"]] = []
    for side in (inside, outside):
        progress("membership: signals", len(scores), 2)
        scores.append(control.scored(relative_signals(learner, start, side, effort.draws, signals)))
    progress("membership: signals", 2, 2)
    told = tell_apart(scores[0], scores[1], rng)
    plot = _drawn(claim, control, scores[0], scores[1], rng)
    return _judged(claim, told, blind, control, plot, local=local)


def _drawn(
    claim: Claim,
    control: _Control,
    inside: Float[np.ndarray, " inside"],
    outside: Float[np.ndarray, " outside"],
    rng: np.random.Generator,
) -> Plot:
    """Operating curves: of the attack, of its control, of guessing, and of the best that the guarantee leaves."""
    curves = {"attack": roc(inside, outside), "the same on an overfitted control": list(control.curve)}
    curves |= {"guarantee: no attack above": claim.curve()} if claim.guaranteed else {}
    return Plot(
        "Members found, by the false alarms that one accepts",
        "share of others taken for members",
        "share of members found",
        "the closer the attack lies to guessing the better, whatever the control shows; shaded, 99% for each rate",
        curves | {"guessing": [(0.0, 0.0), (1.0, 1.0)]},
        roc_band(inside, outside, rng),
    )


def _told_by(start: Learner, inside: Tensor, outside: Tensor, rng: np.random.Generator) -> ToldApart:
    """How well a network that never saw anybody tells the two sides apart: they should be of one kind."""
    features = [pooled_features(start, side) for side in (inside, outside)]
    return tell_kinds_apart(features[0], features[1], rng)


def _some(
    sets: Sequence[ImageSet], most: int, each: int, rng: np.random.Generator
) -> Float[Tensor, "patients each c h w"]:
    """Images of at most so many patients of all sets together, drawn at random."""
    everybody = [(images, patient) for images in sets for patient in range(len(images.patients))]
    chosen = [everybody[place] for place in rng.permutation(len(everybody))[:most]]
    found = [images_of(images, range(patient, patient + 1), each, rng) for images, patient in chosen]
    return torch.cat(found) if found else torch.empty(0, each, 1, 1, 1)


def strangers(plan: Plan, cohort: Cohort, patients: int) -> list[ImageSet]:
    """Return patients of the same kind that were not trained on: so many made up anew, or those held out."""
    data = plan.data
    if data.source == "phantom":
        return [
            load_images(
                "phantom",
                image_size=data.image_size,
                channels=data.channels,
                seed=plan.seed + 1,
                patients=patients,
            )
        ]
    held_out = [cohort.probe_test, cohort.probe_fit]
    trained = set().union(*(images.patients for images in cohort.images.values()))
    return [images for images in held_out if images is not None and not trained & set(images.patients)]


@dataclass(frozen=True)
class _Control:
    """An encoder overfitted on purpose, what the attack made of it, and how it weighs signals from here on.

    Its patients are scored by weights that other patients of its own gave, so their scores depend on each other: the
    interval and p of `told` say how steady the area is, up to 1.4 times too narrow near chance, and decide nothing.
    """

    told: ToldApart
    curve: Sequence[tuple[float, float]]
    steps: int
    signals: Sequence[str]
    mean: Float[np.ndarray, " signals"]
    weights: Float[np.ndarray, " signals"]

    @classmethod
    def made(
        cls,
        start: Learner,
        patients: Float[Tensor, "patients each c h w"],
        signals: Sequence[str],
        effort: MembershipEffort,
        rng: np.random.Generator,
        progress: Progress,
    ) -> _Control:
        """Train on some patients alone; tell them from others of the same, each scored by weights that others gave."""
        half = min(len(patients) // 2, effort.control_images // 2)
        each = max(1, min(effort.images, effort.control_images // half))
        inside, outside = patients[:half, :each], patients[half : 2 * half, :each]
        trained = start._replace(network=copy.deepcopy(start.network))
        steps = overfit(
            trained,
            inside.flatten(0, 1),
            effort.control_steps,
            effort.control_seconds,
            rng,
            lambda done, total: progress("membership: control", done, total),
        )
        sides = [relative_signals(trained, start, side, effort.draws, signals) for side in (inside, outside)]
        scores = _cross_fitted(sides[0], sides[1])
        return cls(tell_apart(*scores, rng), roc(*scores), steps, signals, *_fitted(sides[0], sides[1]))

    def scored(self, signals: Float[np.ndarray, "patients signals"]) -> Float[np.ndarray, " patients"]:
        return np.asarray((signals - self.mean) @ self.weights)


def _fitted(
    inside: Float[np.ndarray, "inside signals"], outside: Float[np.ndarray, "outside signals"]
) -> tuple[Float[np.ndarray, " signals"], Float[np.ndarray, " signals"]]:
    """Centre and weights of a logistic regression on standardised signals."""
    from sklearn.linear_model import LogisticRegression

    both = np.concatenate([inside, outside])
    mean, scale = both.mean(axis=0), both.std(axis=0) + 1e-12
    model = LogisticRegression(max_iter=1_000).fit((both - mean) / scale, np.arange(len(both)) < len(inside))
    return mean, model.coef_[0] / scale


def _cross_fitted(
    inside: Float[np.ndarray, "inside signals"],
    outside: Float[np.ndarray, "outside signals"],
    folds: int = 10,
) -> tuple[Float[np.ndarray, " inside"], Float[np.ndarray, " outside"]]:
    """Scores of both sides, each by weights from the other folds."""
    scores = [np.empty(len(side)) for side in (inside, outside)]
    for fold in range(folds):
        held = [np.arange(len(side)) % folds == fold for side in (inside, outside)]
        mean, weights = _fitted(inside[~held[0]], outside[~held[1]])
        for side, score, rows in zip((inside, outside), scores, held, strict=True):
            score[rows] = (side[rows] - mean) @ weights
    return scores[0], scores[1]


def _too_few(inside: int, outside: int, *, local: bool) -> AuditResult:
    return _result(
        Verdict.INCONCLUSIVE,
        f"{inside} patients trained on and {outside} held out can be read; {FEWEST} of each are needed: name a folder "
        "of others of the same kind, --held-out DIR, or where images have labels plan the run with --probe",
        (),
        {},
        local=local,
    )


def _judged(
    claim: Claim,
    told: ToldApart,
    blind: ToldApart,
    control: _Control,
    plot: Plot,
    *,
    local: bool,
) -> AuditResult:
    """One kind of patients, or more told apart than the difference of kinds makes, and it is no excuse."""
    findings = _checks(claim, told, blind, control)
    verdict = Verdict.NO_LEAK_DETECTED
    if not findings[0].passed and (findings[-1].passed or told.low > blind.high):
        verdict = Verdict.LEAK
    elif not all(finding.passed for finding in findings):
        verdict = Verdict.INCONCLUSIVE
    return _result(
        verdict,
        f"{told.found:.1%} of members found at {told.alarms:.1%} false alarms (guessing finds {told.alarms:.1%}); "
        f"area under the curve {told.auc:.2f} (99%: {told.low:.2f} to {told.high:.2f}), {control.told.auc:.2f} on an "
        f"overfitted control; {claim}",
        findings,
        _figures(claim, told, blind, control),
        (plot,),
        local=local,
    )


def _checks(claim: Claim, told: ToldApart, blind: ToldApart, control: _Control) -> tuple[Finding, ...]:
    width, within = (told.high - told.low) / 2, claim.guaranteed and told.high <= claim.allowed
    return (
        claim.judge("within what is allowed", told),
        Finding(
            "control caught",
            control.told.auc >= CAUGHT,
            f"of an encoder overfitted for {control.steps} steps, the same attack makes {control.told.auc:.3f} "
            f"(99%: {control.told.low:.3f} to {control.told.high:.3f}); {CAUGHT} is needed, which --full "
            "may reach",
        ),
        Finding(
            "enough patients",
            within or width <= WIDEST,
            f"interval of {width:.3f} to either side; {WIDEST} is the most, unless all of it is within what is allowed",
        ),
        Finding(
            "room above what is allowed",
            not claim.guaranteed or claim.allowed < NO_ROOM,
            f"{claim.allowed:.3f} is allowed; from {NO_ROOM} on no attack could show a leak: it could of a smaller "
            "epsilon, or of the run itself, about which the accountant knows more",
        ),
        Finding(
            "one kind of patients",
            not blind.beyond_chance and told.high >= 0.5,
            f"a network that never saw anybody tells the sides apart with {blind}; chance is needed, or what is told "
            "apart are kinds of images, unless it is more than that network does",
        ),
    )


def _figures(claim: Claim, told: ToldApart, blind: ToldApart, control: _Control) -> dict[str, float]:
    return {
        "auc": told.auc,
        "low": told.low,
        "high": told.high,
        "p": told.p,
        "found": told.found,
        "false_alarms": told.alarms,
        "control_auc": control.told.auc,
        "blind_auc": blind.auc,
        "allowed": claim.allowed,
        **{f"weight of {name}": float(weight) for name, weight in zip(control.signals, control.weights, strict=True)},
    }


def _result(
    verdict: Verdict,
    sentence: str,
    findings: tuple[Finding, ...],
    figures: dict[str, float],
    plots: tuple[Plot, ...] = (),
    local: bool = False,
) -> AuditResult:
    return AuditResult(
        name="membership",
        verdict=verdict,
        sentence=sentence,
        attacker="one who has the encoder and its public start, and images of the patient in question",
        null_means="It does not show that nobody could tell: attacks that succeed on an overfitted encoder found "
        "nothing here; the guarantee, not these attacks, says what none can find.",
        findings=findings,
        figures=figures,
        plots=plots,
        local=local,
    )
