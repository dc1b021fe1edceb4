"""Where training starts: on procedural images that are nobody's, from scratch, or from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from privfm.federation.network import Learner, backbone_spec, build_learner
from privfm.federation.observer import Observer
from privfm.federation.pretraining import public_initialisation
from privfm.models import load_checkpoint, load_without_adapters
from privfm.plan import Plan

__all__ = ["Start", "initialise"]


@dataclass(frozen=True)
class Start:
    """The network that round 1 starts from.

    Args:
        learner: with initial weights.
        public_data: what it was trained on before, one sentence each; for the statement.
        notes: what had to be adapted, one line each.
    """

    learner: Learner
    public_data: tuple[str, ...]
    notes: tuple[str, ...]


def initialise(plan: Plan, observer: Observer) -> Start:
    """Return the plan's network at its start.

    Raises:
        ModelError: the backbone, or the checkpoint that the plan names, will not do.
    """
    learner = build_learner(plan)
    compared = _compared_with(plan, learner)
    match plan.model.init:
        case "scratch":
            return Start(learner, compared, learner.network.backbone.notes)
        case "public":
            return _public(plan, learner, observer)
        case file:
            notes = load_checkpoint(learner.network.backbone, Path(file))
            learner.network.refresh()
            told = f"initial weights read from {Path(file).name}; what they were trained on is not known to privfm"
            return Start(learner, (told, *compared), (*learner.network.backbone.notes, *notes))


def _public(plan: Plan, learner: Learner, observer: Observer) -> Start:
    observer.stage("starting from procedural images, which are nobody's")
    state, provenance = public_initialisation(
        backbone_spec(plan), learner.objective, seed=plan.seed, progress=observer.progress
    )
    load_without_adapters(learner.network, state)
    return Start(learner, (provenance.sentence, *_compared_with(plan, learner)), learner.network.backbone.notes)


def _compared_with(plan: Plan, learner: Learner) -> tuple[str, ...]:
    """Return what an objective compares patients' images with, for the statement."""
    count = learner.objective.public_images
    if count == 0:
        return ()
    return (
        f"objective {learner.objective.name} compares with {count} procedural images that a program drew "
        f"(seed {plan.seed}; nobody's data)",
    )
