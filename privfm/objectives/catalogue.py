"""Objectives by name, and why some names are refused."""

from __future__ import annotations

from typing import Any

from privfm.errors import PlanError
from privfm.objectives.mae import MaskedAutoEncoding
from privfm.objectives.protocol import Objective

__all__ = ["COUPLED", "get_objective"]

_OBJECTIVES: dict[str, type[Objective]] = {"mae": MaskedAutoEncoding}

#: Objectives in which one image's loss depends on other images of the batch, or on state that they left behind.
COUPLED = {
    "barlowtwins": "its cross-correlation is taken over the batch",
    "byol": "its heads normalise over the batch and its teacher averages weights that saw no noise",
    "deepcluster": "its cluster assignments are computed from everyone's features",
    "dino": "its teacher's centre is a mean over the batch",
    "ibot": "its teacher's centre is a mean over the batch",
    "moco": "its negatives are a queue of other patients' embeddings",
    "nnclr": "its positives come from a queue of other patients' embeddings",
    "simclr": "its negatives are the other images of the batch",
    "supcon": "its positives and negatives are the other images of the batch",
    "swav": "its assignments are balanced over the batch",
    "vicreg": "its variance and covariance terms are taken over the batch",
}


def get_objective(name: str, **options: Any) -> Objective:
    """The objective of that name.

    Raises:
        PlanError: the name is unknown, couples the images of a batch, or takes no such option.

    >>> get_objective("mae", mask_ratio=0.6).name
    'mae'
    >>> get_objective("simclr")
    Traceback (most recent call last):
    ...
    privfm.errors.PlanError: objective simclr: its negatives are the other images of the batch, so ...
    """
    available = ", ".join(_OBJECTIVES)
    if name in COUPLED:
        raise PlanError(
            f"objective {name}: {COUPLED[name]}, so that no gradient belongs to one patient; "
            f"no per-patient form of it is available, use {available}"
        )
    if name not in _OBJECTIVES:
        raise PlanError(f"objective {name}: unknown; use {available}")
    try:
        return _OBJECTIVES[name](**options)
    except (TypeError, ValueError) as error:
        raise PlanError(f"objective {name}: {error}") from error
