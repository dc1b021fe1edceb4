"""What hospitals' lasting ledgers say of a run before it begins, and whether their lifetime caps let it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from privfm.dp.accounting import epsilon
from privfm.dp.calibration import calibrate_noise, calibrate_noise_under
from privfm.dp.events import SampledGaussian
from privfm.dp.filter import RdpFilter
from privfm.dp.ledger import Ledger
from privfm.federation.planning import mechanism_of
from privfm.plan import HospitalPlan, Plan

__all__ = ["Room", "fitting_epsilon", "on_ledger", "room_advice", "room_for"]


@dataclass(frozen=True)
class Room:
    """What a hospital's ledger says of a planned run.

    Args:
        id: the hospital.
        new: whether it has no ledger there, so that the run would begin one.
        epsilon_before, epsilon_after: everything on it, before the run and with all of its rounds and retries.
        cap: epsilon of the lifetime cap; None without one.
        fits: whether the cap has room for all rounds and retries.
        rounds_that_fit: further rounds of this kind that it has room for; None without a cap.
        epsilon_that_fits: a run's epsilon with which all of it would fit; None without a cap, or where none would do.
    """

    id: str
    new: bool
    epsilon_before: float
    epsilon_after: float
    cap: float | None
    fits: bool
    rounds_that_fit: int | None
    epsilon_that_fits: float | None


def room_for(plan: Plan, hospital: HospitalPlan, folder: Path) -> Room:
    """Return what the hospital's ledger in `folder` says of a complete plan; LedgerError when it is damaged."""
    path, mechanism, delta = folder / f"{hospital.id}.sqlite", mechanism_of(plan, hospital), plan.privacy.delta
    before, cap = on_ledger(path, hospital.id)
    after = [*before, mechanism.event(plan.reserved_steps)]
    return Room(
        id=hospital.id,
        new=not path.exists(),
        epsilon_before=epsilon(before, delta),
        epsilon_after=epsilon(after, delta),
        cap=None if cap is None else cap.epsilon,
        fits=cap is None or cap.admits(after),
        rounds_that_fit=None if cap is None else cap.rounds_that_fit([mechanism.event(plan.steps_per_round)], before),
        epsilon_that_fits=None if cap is None else fitting_epsilon(cap, plan, hospital, before),
    )


def on_ledger(path: Path, hospital: str) -> tuple[tuple[SampledGaussian, ...], RdpFilter | None]:
    """Return what a hospital's ledger has charged, and its cap; nothing where there is no ledger."""
    if not path.exists():
        return (), None
    with Ledger.open(path, hospital, read_only=True) as ledger:
        return ledger.events(), ledger.cap


def fitting_epsilon(
    cap: RdpFilter, plan: Plan, hospital: HospitalPlan, before: Sequence[SampledGaussian]
) -> float | None:
    """Return an epsilon for the run, in three digits, whose noise the cap admits; None where none is found.

    The cap counts in another way than the accountant, so the noise that would be planned is tried on the cap itself.
    """
    rate, steps, delta = plan.sample_rate(hospital), plan.reserved_steps, plan.privacy.delta
    try:
        least = calibrate_noise_under(cap, sample_rate=rate, steps=steps, spent=before)
        most = epsilon([SampledGaussian(rate, least, steps)], delta)
        for share in (1.0, 0.99, 0.98, 0.95):
            asked = _floor(share * most)
            noise = calibrate_noise(epsilon=asked, delta=delta, sample_rate=rate, steps=steps)
            if cap.admits([*before, SampledGaussian(rate, noise, steps)]):
                return asked
    except ValueError:  # no noise leaves room, or so much that no epsilon can be told
        return None
    return None


def _floor(value: float) -> float:
    """Return `value` rounded down to three digits.

    >>> _floor(1.2399), _floor(0.0012399)
    (1.23, 0.00123)
    """
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.floor(value / unit) * unit:.3g}")


def room_advice(fitting: Sequence[float | None]) -> str:
    """Return what to do where a cap refuses a run, from the epsilons that would fit at each hospital with a cap."""
    known = [each for each in fitting if each is not None]
    if len(known) < len(fitting) or not known:
        return "plan fewer rounds; no noise makes room for as many"
    return f"plan fewer rounds or more noise: all of it fits with --epsilon {min(known):g}"
