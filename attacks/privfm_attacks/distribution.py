"""What the final model tells of all patients together: which of two shares of them has a property.

Source: Suri & Evans 2022, "Formalizing and estimating distribution inference risks" (arXiv 2109.06024): how well an
attacker tells two distributions apart by a model is read as the number of samples that would tell as much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from privfm_attacks.participation import Participation
from privfm_attacks.pooling import auc
from privfm_attacks.rehearsal import Hospitals, linear_attack, rehearse
from privfm_attacks.stand_in import Bank, StandIn

__all__ = ["FinalModel", "n_leaked", "read_final_models"]

CONFIDENCE = 0.95


def n_leaked(accuracy: float, shares: tuple[float, float]) -> float:
    """Return how many patients, shown one by one, would tell two shares apart as accurately.

    Args:
        accuracy: of telling which of the two it is; one half or less is worth nobody.
        shares: of patients with the property, different and both within (0, 1).

    Source: Suri & Evans 2022, section 4, for a property that a patient has or has not.

    >>> n_leaked(0.5, (0.4, 0.6)), round(n_leaked(0.9, (0.4, 0.6)), 2)
    (0.0, 2.52)
    """
    low, high = sorted(shares)
    if not 0 < low < high < 1:
        raise ValueError(f"shares={shares}: need two different ones within (0, 1)")
    if accuracy <= 0.5:
        return 0.0
    return math.log(4 * accuracy * (1 - accuracy)) / math.log(max(low / high, (1 - high) / (1 - low)))


@dataclass(frozen=True)
class FinalModel:
    """How well models were told apart that were trained on a small and on a large share of patients with a property.

    Args:
        auc: of the attacker's scores.
        accuracy, low, high: of its decisions, with an exact 95% interval; at most what half an error would be.
        leaked, leaked_low: patients worth as much, and at least as many.
    """

    auc: float
    accuracy: float
    low: float
    high: float
    leaked: float
    leaked_low: float


def read_final_models(
    stand_in: StandIn, bank: Bank, hospitals: Hospitals, rounds: int, models: int, rng: np.random.Generator
) -> FinalModel:
    """Train models of both kinds, learn to tell them apart on some, and do so on others.

    Args:
        hospitals: all of which have the property, or none.
        rounds: with everybody in the sum.
        models: of either kind, to learn from and as many to tell apart.
    """
    names = tuple(str(place) for place in range(len(hospitals)))
    everybody = Participation(names, (frozenset(names),) * rounds)

    def trained(having: bool) -> Float[Tensor, "models parameters"]:
        labels = np.full(len(hospitals), having)
        runs = [rehearse(stand_in, bank, hospitals, everybody, labels, rng, read=False) for _ in range(models)]
        return torch.stack([run.moved for run in runs])

    direction, lacking = linear_attack(trained(False), trained(True), 0.0)
    scores = torch.cat([trained(False), trained(True)]) @ direction - lacking
    return _judged(scores.numpy(), np.arange(2 * models) >= models, hospitals.share)


def _judged(scores: Float[np.ndarray, " models"], labels: np.ndarray, shares: tuple[float, float]) -> FinalModel:
    right, count = int(((scores > 0.5) == labels).sum()), len(labels)
    interval = stats.binomtest(right, count).proportion_ci(CONFIDENCE, "exact")
    most = 1 - 0.5 / count
    return FinalModel(
        auc=auc(scores, labels),
        accuracy=min(right / count, most),
        low=float(interval.low),
        high=float(interval.high),
        leaked=n_leaked(min(right / count, most), shares),
        leaked_low=n_leaked(float(interval.low), shares),
    )
