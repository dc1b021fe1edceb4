"""The forget audit: is a model that was trained again without somebody like one that never saw them?

Patients who asked out are compared with bystanders, whom no model in question ever saw, by the loss of their images
relative to reference models that saw neither. Of a model that was trained on them the loss tells who asked out; of one
that was trained again without them it must not.

It reads images in the clear, those of patients who asked out among them: of built-in data they are nobody's; of a
hospital's own it is done only when asked for by name, and what is found stays at the hospital.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from privfm.data import ImageSet
from privfm.errors import RunError
from privfm.federation.cohort import Cohort, gather_cohort
from privfm.federation.directory import RunDirectory, begun_plan
from privfm.federation.folder import is_run
from privfm.federation.forgotten import Forgotten, read_forgotten, read_origin
from privfm.federation.network import Learner, load_network, network_hash
from privfm.federation.stating import BUILT_IN
from privfm.plan import Plan
from privfm_attacks.claims import Claim
from privfm_attacks.membership import CAUGHT, FEWEST, strangers
from privfm_attacks.overfitting import overfit
from privfm_attacks.signals import images_of, relative_signals
from privfm_attacks.telling_apart import CHANCE, Progress, ToldApart, tell_apart
from privfm_attacks.verdicts import AuditResult, Finding, Verdict

__all__ = ["ForgetEffort", "Pair", "audit_forgetting", "pair_of"]

MOST_BYSTANDERS = 120

EQUIVALENT = 0.7
"""Area that the interval may reach where a model counts as like those that never saw them: no alarm is not enough."""

Patients = Float[Tensor, "patients each c h w"]


@dataclass(frozen=True)
class ForgetEffort:
    """How hard to look.

    Args:
        patients: that ask out in the rehearsal; as many stand by, and half as many stay.
        images: of each in the rehearsal; few, so that a model learns them by heart within seconds.
        images_of_run: of each who asked out of the run, and of bystanders to them.
        draws: masks of an image.
        references: models that saw neither.
        steps, seconds: of each model's training, at most.
    """

    patients: int = 24
    images: int = 1
    images_of_run: int = 4
    draws: int = 16
    references: int = 2
    steps: int = 800
    seconds: float = 20.0


@dataclass(frozen=True)
class Pair:
    """A run that somebody asked out of, and the run that was trained again without them.

    Args:
        was: with who asked out.
        again: None where the run was not trained again.
        forgotten: who asked out, of those whom the run that was trained again leaves out.
    """

    was: RunDirectory
    again: RunDirectory | None
    forgotten: Forgotten


def pair_of(run: RunDirectory) -> Pair | None:
    """Return a run with its counterpart: of one trained again the run it comes of, of another the newest trained again.

    None where nobody asked out. The counterpart of a run that somebody asked out of is looked for beside it.

    Raises:
        RunError: the run that this one comes of is no longer where it was.
    """
    beside = [RunDirectory(folder) for folder in sorted(run.root.absolute().parent.iterdir()) if is_run(folder)]
    origin = read_origin(run)
    if origin is not None:
        for was in (RunDirectory(Path(origin.folder)), *beside):
            if is_run(was.root) and was.facts().run == origin.of:
                return Pair(was, run, read_forgotten(run))
        raise RunError(f"{origin.folder}: the run that {run.root} was trained again from is not there; put it back")
    forgotten = read_forgotten(run)
    if not forgotten:
        return None
    again = [each for each in beside if (of := read_origin(each)) is not None and of.of == run.facts().run]
    newest = max(again, key=lambda each: each.facts().started, default=None)
    return Pair(run, newest, forgotten if newest is None else read_forgotten(newest))


def audit_forgetting(
    start: Learner,
    cohort: Cohort,
    pair: Pair | None = None,
    effort: ForgetEffort = ForgetEffort(),
    progress: Progress = lambda stage, done, total: None,
) -> AuditResult:
    """Return the audit: a rehearsal with patients of its own choice, and where somebody asked out the run itself.

    Args:
        start: the network before training.
        cohort: images of those who did not ask out.
        pair: the run that somebody asked out of, before and after.
        progress: told a stage, and how much of it is done.
    """
    rng = np.random.default_rng(start.plan.seed)
    everybody = _of_each(list(cohort.images.values()), effort.images, rng)
    size = min(effort.patients, len(everybody) // 3)
    if size < FEWEST:
        return _not_enough(start.plan, f"{len(everybody)} patients can be read; {3 * FEWEST} are needed for a control")
    asked, bystanders, stay = everybody[:size], everybody[size : 2 * size], everybody[2 * size : 5 * size // 2]
    trained: list[Learner] = []
    for images in (torch.cat([asked, stay]), stay, *[stay] * effort.references):
        progress("forget: control", len(trained), effort.references + 2)
        trained.append(_overfitted(start, images, effort, rng))
    references = _References(tuple(trained[2:]), effort.draws)
    control, rehearsed = (references.told_apart(each, asked, bystanders, rng) for each in trained[:2])
    findings, figures = [_caught(control), _equivalent_in_rehearsal(rehearsed)], _figures("rehearsal", rehearsed)
    figures |= _figures("control", control)
    if not all(finding.passed for finding in findings):
        return _result(start.plan, Verdict.INCONCLUSIVE, _SENTENCES["blind"], findings, figures)
    if pair is None:
        return _result(start.plan, Verdict.INCONCLUSIVE, _SENTENCES["rehearsed"], findings, figures)
    return _of_pair(pair, cohort, references, effort, rng, findings, figures)


@dataclass(frozen=True)
class _References:
    """Models that saw neither those who asked out nor bystanders."""

    models: tuple[Learner, ...]
    draws: int

    def told_apart(
        self, learner: Learner, asked: Patients, bystanders: Patients, rng: np.random.Generator
    ) -> ToldApart:
        """Return how well the loss tells those who asked out from bystanders, relative to what it is of these models.

        Some patients are easy for any model, and some models good with anybody: the first is taken off by the
        references, the second by the bystanders.
        """
        return tell_apart(self._relative(learner, asked), self._relative(learner, bystanders), rng)

    def _relative(self, learner: Learner, patients: Patients) -> Float[np.ndarray, " patients"]:
        each = [relative_signals(learner, model, patients, self.draws, ["loss"])[:, 0] for model in self.models]
        return np.asarray(np.mean(each, axis=0))


def _of_each(sets: Sequence[ImageSet], each: int, rng: np.random.Generator) -> Patients:
    """Images of all patients, in random order."""
    found = [images_of(images, range(len(images.patients)), each, rng) for images in sets if images.patients]
    if not found:
        return torch.empty(0, each, 1, 1, 1)
    whole = torch.cat(found)
    return whole[torch.from_numpy(rng.permutation(len(whole)))]


def _overfitted(start: Learner, patients: Patients, effort: ForgetEffort, rng: np.random.Generator) -> Learner:
    """Return a copy of the start, trained without privacy on some patients alone, for too long."""
    learner = start._replace(network=copy.deepcopy(start.network))
    overfit(learner, patients.flatten(0, 1), effort.steps, effort.seconds, rng)
    return learner


def _of_pair(
    pair: Pair,
    cohort: Cohort,
    references: _References,
    effort: ForgetEffort,
    rng: np.random.Generator,
    findings: list[Finding],
    figures: dict[str, float],
) -> AuditResult:
    plan = begun_plan(pair.was)
    if pair.again is not None:
        findings = [*findings, *_same_beginnings(pair.was, pair.again, pair.forgotten)]
    asked = _of_each(_asked_out(plan, pair.forgotten), effort.images_of_run, rng)
    others = strangers(plan, cohort, MOST_BYSTANDERS)
    bystanders = _of_each(others, effort.images_of_run, rng)[:MOST_BYSTANDERS]
    if not all(finding.passed for finding in findings):
        return _result(plan, Verdict.LEAK, _SENTENCES["other"], findings, figures)
    if not len(asked) or len(bystanders) < FEWEST:
        why = "images of who asked out are gone" if not len(asked) else f"fewer than {FEWEST} patients were held out"
        return _result(plan, Verdict.INCONCLUSIVE, f"{why}: nothing can be compared", findings, figures)
    before = references.told_apart(load_network(pair.was.root), asked, bystanders, rng)
    figures = {**figures, "asked_out": len(asked), **_figures("as it stood", before)}
    if pair.again is None:
        return _not_trained_again(plan, before, (len(asked), len(bystanders)), findings, figures)
    after = references.told_apart(load_network(pair.again.root), asked, bystanders, rng)
    findings.append(Finding("trained again, like models that never saw them", not after.beyond_chance, str(after)))
    figures |= _figures("trained again", after)
    alike = Finding("enough asked out", after.high <= EQUIVALENT, f"{after}; {EQUIVALENT} is the most")
    findings += [] if after.beyond_chance else [alike]
    sentence = "told" if after.beyond_chance else "forgotten" if alike.passed else "exact"
    verdict = {"told": Verdict.LEAK, "forgotten": Verdict.NO_LEAK_DETECTED}.get(sentence, Verdict.INCONCLUSIVE)
    return _result(plan, verdict, f"{_SENTENCES[sentence]} ({after}){_of_before(before)}", findings, figures)


def _asked_out(plan: Plan, forgotten: Forgotten) -> list[ImageSet]:
    """Return the images of who asked out, by hospital; files that were deleted are not among them."""
    found = []
    for name, images in gather_cohort(plan).images.items():
        out = [place for place, patient in enumerate(images.patients) if forgotten.leaves_out(name, patient)]
        found += [images.select_patients(np.array(out, dtype=np.int64))] if out else []
    return found


def _same_beginnings(was: RunDirectory, again: RunDirectory, forgotten: Forgotten) -> list[Finding]:
    """What makes training again exact: it began where the run did, with its plan, and read nobody who asked out."""
    starts = [network_hash(load_network(run.root, "start.safetensors").network) for run in (was, again)]
    plans = [begun_plan(run) for run in (was, again)]
    stayed = tuple(each for each in plans[0].hospitals if each.id not in forgotten.hospitals)
    settled = [each.model_copy(update={"hospitals": (), "secagg": plans[0].secagg}).hash() for each in plans]
    same = settled[0] == settled[1] and plans[1].hospitals == stayed
    return [
        Finding("same start", starts[0] == starts[1], f"weights {starts[0].hex()[:16]} and {starts[1].hex()[:16]}"),
        Finding("same plan", same, f"{len(stayed)} hospitals stay, {len(plans[1].hospitals)} are in the new plan"),
    ]


def _caught(control: ToldApart) -> Finding:
    detail = f"of a model trained on who asked out, without noise: {control}; {CAUGHT} is needed"
    return Finding("control caught", control.auc >= CAUGHT and control.beyond_chance, detail)


def _equivalent_in_rehearsal(rehearsed: ToldApart) -> Finding:
    detail = f"of a model that never saw them: {rehearsed}; chance is needed"
    return Finding("no false alarm", not rehearsed.beyond_chance, detail)


def _not_trained_again(
    plan: Plan, before: ToldApart, people: tuple[int, int], findings: list[Finding], figures: dict[str, float]
) -> AuditResult:
    """The model as it stands, beside what is claimed of it; seeing nothing counts where something could be seen.

    More than is claimed has to be beyond chance as well: of one patient, people drawn anew are always that one, and an
    interval that tells nothing of others whom it might have been is above what is allowed in one sound run of five.

    Args:
        people: how many asked out, and how many bystanders there are.
    """
    stands = Claim.of(plan).judge("as it stands", before)
    enough = _enough(before, *people)
    told = not stands.passed and before.beyond_chance
    sentence = "withdraw" if told else "kept" if stands.passed and enough.passed else "few"
    verdict = {"withdraw": Verdict.LEAK, "kept": Verdict.NO_LEAK_DETECTED}.get(sentence, Verdict.INCONCLUSIVE)
    findings = [*findings, stands, *([] if told else [enough])]
    return _result(plan, verdict, f"{_SENTENCES[sentence]} ({before})", findings, figures)


def _enough(told: ToldApart, asked: int, bystanders: int) -> Finding:
    """Whether so few could be told from so many at all, and what was found leaves no room for much."""
    least = 1 / math.comb(asked + bystanders, asked)
    return Finding(
        "enough asked out",
        least < CHANCE and told.high <= EQUIVALENT,
        f"{told}; {EQUIVALENT} is the most; of {asked} who asked out and {bystanders} bystanders p is {least:.2g} at "
        f"least, and below {CHANCE} is needed",
    )


def _of_before(before: ToldApart) -> str:
    if before.beyond_chance:
        return f"; the model as it stood gives them away ({before}): withdraw it"
    return f"; of the model as it stood neither can be told ({before})"


_SENTENCES = {
    "blind": "the control was not caught, or an innocent model was: nothing can be concluded",
    "rehearsed": "nobody asked out, so that there is nothing to judge; of patients chosen at random a model that saw "
    "them gives them away, and one that was trained again without them does not",
    "other": "the run that was trained again is not the same run without those who asked out",
    "told": "the model that was trained again gives away who asked out",
    "forgotten": "the model that was trained again cannot be told from models that never saw who asked out",
    "exact": "the model was trained again exactly, without who asked out; they are too few for a comparison to show "
    "that nothing of them is left in it",
    "withdraw": "the model as it stands gives away who asked out: withdraw it, and train again without them",
    "kept": "nothing is seen of who asked out in the model as it stands, which was not trained again",
    "few": "who asked out, or bystanders to them, are too few for a comparison to show whether something of them is in "
    "the model as it stands: train again without them (privfm forget --out NEW), which is checked "
    "without one, or ask for this audit again when more have asked out",
}


def _figures(name: str, told: ToldApart) -> dict[str, float]:
    return {f"{name}: auc": told.auc, f"{name}: low": told.low, f"{name}: high": told.high, f"{name}: p": told.p}


def _not_enough(plan: Plan, why: str) -> AuditResult:
    return _result(plan, Verdict.INCONCLUSIVE, why, [], {})


def _result(
    plan: Plan, verdict: Verdict, sentence: str, findings: list[Finding], figures: dict[str, float]
) -> AuditResult:
    return AuditResult(
        name="forget",
        verdict=verdict,
        sentence=sentence,
        attacker="one who has the models, their public start, and images of who asked out and of others",
        null_means="It does not show that nothing was kept: that the run began at the same start and read nobody who "
        "asked out does. With few who asked out it sees strong memories alone.",
        findings=tuple(findings),
        figures=figures,
        local=plan.data.source not in BUILT_IN,
    )
