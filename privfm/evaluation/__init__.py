"""What frozen features are worth."""

from __future__ import annotations

from privfm.evaluation.features import pooled_features
from privfm.evaluation.knn import nearest_neighbours
from privfm.evaluation.probe import ProbeResult, linear_probe
from privfm.evaluation.scores import BalancedAccuracy, balanced_accuracy

__all__ = [
    "BalancedAccuracy",
    "ProbeResult",
    "balanced_accuracy",
    "linear_probe",
    "nearest_neighbours",
    "pooled_features",
]
