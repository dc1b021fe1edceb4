"""Objectives by name, and why some names and options are refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from privfm.coupling import COUPLING_OPTIONS
from privfm.errors import PlanError
from privfm.objectives.dino import Dino
from privfm.objectives.mae import MaskedAutoEncoding
from privfm.objectives.protocol import Objective
from privfm.objectives.siamese import Byol, SimSiam
from privfm.objectives.simclr import SimClr
from privfm.objectives.simmim import SimMim
from privfm.plan import ObjectivePlan

__all__ = ["COUPLED", "OBJECTIVES", "get_objective"]

OBJECTIVES: dict[str, type[Any]] = {
    each.name: each for each in (MaskedAutoEncoding, SimMim, SimSiam, Byol, Dino, SimClr)
}

#: Objectives in which one image's loss depends on other images of the batch, or on state that they left behind: why,
#: and which sound objective is nearest.
COUPLED = {
    "barlowtwins": ("its cross-correlation is taken over the batch", "simsiam"),
    "deepcluster": ("its cluster assignments are computed from everyone's features", "dino"),
    "dinov2": ("its teacher's centre is a mean over the batch, and it spreads the batch's features", "dino"),
    "ibot": ("its teacher's centre is a mean over the batch", "dino"),
    "moco": ("its negatives are a queue of other patients' embeddings", "simclr"),
    "msn": ("its mean over the batch is pushed towards uniform", "dino"),
    "nnclr": ("its positives come from a queue of other patients' embeddings", "simclr"),
    "supcon": ("its positives and negatives are the other images of the batch", "simclr"),
    "swav": ("its assignments are balanced over the batch", "dino"),
    "vicreg": ("its variance and covariance terms are taken over the batch", "byol"),
    "wmse": ("its whitening is taken over the batch", "simsiam"),
}


def get_objective(name: str, **options: Any) -> Objective:
    """The objective of that name.

    Raises:
        PlanError: the name is unknown, couples the images of a batch, or takes no such option.

    >>> get_objective("mae", mask_ratio=0.6).name
    'mae'
    >>> get_objective("moco")
    Traceback (most recent call last):
    ...
    privfm.errors.PlanError: objective moco: its negatives are a queue ... use simclr, ...
    """
    if name in COUPLED:
        why, instead = COUPLED[name]
        raise PlanError(
            f"objective {name}: {why}, so that no gradient belongs to one patient; use {instead}, "
            f"the nearest per-patient form"
        )
    if name not in OBJECTIVES:
        raise PlanError(f"objective {name}: unknown; use {', '.join(OBJECTIVES)}")
    _check_options(name, options)
    try:
        made: Objective = OBJECTIVES[name](**options)
    except (TypeError, ValueError) as error:
        raise PlanError(f"objective {name}: {error}") from error
    return made


def _check_options(name: str, options: dict[str, Any]) -> None:
    taken = [field.name for field in fields(OBJECTIVES[name])]
    for option in options:
        if option in COUPLING_OPTIONS:
            raise PlanError(f"objective {name}: {option} {COUPLING_OPTIONS[option]}")
        if option not in taken:
            keys = [each for each in taken if each in ObjectivePlan.model_fields]
            raise PlanError(f"objective {name}: takes no {option}; it takes {', '.join(keys)}")
