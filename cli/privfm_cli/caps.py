"""Hospitals' lifetime caps, shown, set and lowered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from privfm.dp.calibration import cap_for_plan
from privfm.dp.events import SampledGaussian, total_steps
from privfm.dp.filter import RdpFilter
from privfm.dp.ledger import Ledger
from privfm.errors import PlanError
from privfm_cli.spending import DEFAULT_DELTA, ledger_files, plan_of

__all__ = ["CapState", "lower_caps", "read_caps"]

PLACES = 10_000
"""Of epsilons that can be typed: four decimals."""


@dataclass(frozen=True)
class CapState:
    """A hospital's lifetime cap, and how far it reaches.

    Args:
        hospital: whose ledger it is.
        path: the ledger.
        epsilon, delta, order: of the filter; None where there is no cap.
        share_left: of the filter's budget, a Renyi divergence at `order`, in [0, 1]; not a share of epsilon.
        run: the newest run on record; None before the first.
        rounds_left: that the newest run may still charge by its own declaration, retries included; 0 when it is over.
        rounds_that_fit: further rounds of the newest run's kind that the cap has room for.
        after_releases: whether the ledger has charged anything.
    """

    hospital: str
    path: str
    epsilon: float | None
    delta: float | None
    order: float | None
    share_left: float | None
    run: str | None
    rounds_left: int | None
    rounds_that_fit: int | None
    after_releases: bool


def read_caps(path: Path) -> tuple[CapState, ...]:
    """Return the caps of the ledgers under `path`.

    Raises:
        InputError: there is no ledger.
        LedgerError: one of them is damaged.
    """
    with ExitStack() as stack:
        return tuple(_state(stack.enter_context(Ledger.open(file, read_only=True))) for file in ledger_files(path))


def lower_caps(path: Path, epsilon: float, delta: float | None) -> tuple[CapState, ...]:
    """Set the first cap of every ledger under `path`, or lower the one in force; all of them or none.

    Raises:
        PlanError: a cap would be raised or change its delta, or has no room for anything.
        LedgerError: a ledger is damaged or in use.
    """
    if not 0 < epsilon <= 100:
        raise PlanError(f"--epsilon {epsilon:g}: must be above 0 and at most 100")
    if delta is not None and not 0 < delta <= 0.1:
        raise PlanError(f"--delta {delta:g}: must be above 0 and at most 0.1")
    plan = plan_of(path)
    usual = plan.privacy.delta if plan else DEFAULT_DELTA
    with ExitStack() as stack:
        ledgers = [stack.enter_context(Ledger.open(file)) for file in ledger_files(path)]
        caps = [_new_cap(ledger, epsilon, delta, usual) for ledger in ledgers]
        for ledger, cap in zip(ledgers, caps, strict=True):
            if ledger.cap != cap:
                ledger.set_cap(cap)
        return tuple(_state(ledger) for ledger in ledgers)


def _new_cap(ledger: Ledger, epsilon: float, delta: float | None, usual: float) -> RdpFilter:
    old, name = ledger.cap, ledger.hospital
    if old is not None and delta not in (None, old.delta):
        raise PlanError(f"--delta {delta:g}: the cap of {name} keeps its delta of {old.delta:g} for life; leave it out")
    if old is not None and epsilon > old.epsilon:
        raise PlanError(f"--epsilon {epsilon:g}: a cap can only be lowered, and that of {name} is {old.epsilon:g}")
    try:
        if old is None:
            return _first_cap(ledger, epsilon, usual if delta is None else delta)
        return RdpFilter(epsilon, old.delta, old.order)
    except ValueError as error:
        why = f"{error}; take a larger one" if old is None else _way_down(old, ledger.events())
        raise PlanError(f"--epsilon {epsilon:g}: no cap for {name}: {why}") from None


def _way_down(cap: RdpFilter, events: Sequence[SampledGaussian]) -> str:
    """Return how far a cap can be lowered, and with which epsilon to allow nothing beyond what is spent already."""
    least, spent = cap.epsilon - cap.budget, cap.spent(events)
    last = f"its order {cap.order:g}, kept for life, cannot hold one of {least:.4f} or less"
    if spent >= cap.budget:
        return f"{last}, and the one of {cap.epsilon:g} in force leaves room for nothing more"
    full = math.floor((least + spent) * PLACES - 1) / PLACES
    if full > least:
        return f"{last}; --epsilon {full:g} is what it has spent by the cap's rule, and leaves room for nothing more"
    return f"{last}; --epsilon {math.ceil(least * PLACES + 1) / PLACES:g} leaves room for next to nothing"


def _first_cap(ledger: Ledger, epsilon: float, delta: float) -> RdpFilter:
    """Return a cap whose order suits the newest run's declaration, which is public and says nothing of its outcome."""
    runs = ledger.runs()
    if not runs:
        return RdpFilter.for_cap(epsilon, delta)
    declared = runs[-1].declaration
    longest = max(declared.per_round, key=lambda event: event.steps)
    steps = declared.most_rounds * total_steps(declared.per_round)
    return cap_for_plan(epsilon=epsilon, delta=delta, sample_rate=longest.sample_rate, steps=steps)


def _state(ledger: Ledger) -> CapState:
    cap, events, runs = ledger.cap, ledger.events(), ledger.runs()
    newest = runs[-1].declaration if runs else None
    return CapState(
        hospital=ledger.hospital,
        path=str(ledger.path),
        epsilon=cap.epsilon if cap else None,
        delta=cap.delta if cap else None,
        order=cap.order if cap else None,
        share_left=cap.remaining(events) if cap else None,
        run=newest.run if newest else None,
        rounds_left=(0 if runs[-1].over else ledger.remaining(newest.run)) if newest else None,
        rounds_that_fit=cap.rounds_that_fit(newest.per_round, events) if cap and newest else None,
        after_releases=bool(events),
    )
