"""Differential privacy for patients: events, accountants, budgets, ledgers, statements, and the mechanism itself.

Names load when they are used. What is imported from here costs nothing until then, and only the mechanism's own modules
(coins, sampling, clipping, mechanism) need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privfm.dp.accounting import accountant_version, delta_for, epsilon, epsilon_curve, epsilon_over_steps
    from privfm.dp.calibration import (
        CalibratedNoise,
        NoiseRequest,
        calibrate_noise,
        calibrate_noise_under,
        calibrate_noises,
        cap_for_plan,
    )
    from privfm.dp.events import SampledGaussian, compose, events_from_json, events_to_json, total_steps
    from privfm.dp.filter import RdpFilter
    from privfm.dp.forecast import Forecast
    from privfm.dp.ledger import Charge, Ledger, RunRecord
    from privfm.dp.statement import PrivacyStatement, composed_guarantee, hospital_statement

__all__ = [
    "CalibratedNoise",
    "Charge",
    "Forecast",
    "Ledger",
    "NoiseRequest",
    "PrivacyStatement",
    "RdpFilter",
    "RunRecord",
    "SampledGaussian",
    "accountant_version",
    "calibrate_noise",
    "calibrate_noise_under",
    "calibrate_noises",
    "cap_for_plan",
    "compose",
    "composed_guarantee",
    "delta_for",
    "epsilon",
    "epsilon_curve",
    "epsilon_over_steps",
    "events_from_json",
    "events_to_json",
    "hospital_statement",
    "total_steps",
]

_HOME = {
    "accounting": ("accountant_version", "delta_for", "epsilon", "epsilon_curve", "epsilon_over_steps"),
    "calibration": (
        "CalibratedNoise",
        "NoiseRequest",
        "calibrate_noise",
        "calibrate_noise_under",
        "calibrate_noises",
        "cap_for_plan",
    ),
    "events": ("SampledGaussian", "compose", "events_from_json", "events_to_json", "total_steps"),
    "filter": ("RdpFilter",),
    "forecast": ("Forecast",),
    "ledger": ("Charge", "Ledger", "RunRecord"),
    "statement": ("PrivacyStatement", "composed_guarantee", "hospital_statement"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
