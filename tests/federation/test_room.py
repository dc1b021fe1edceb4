"""Before a run begins: what lasting ledgers make of it, and an epsilon that a lifetime cap has room for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from privfm.dp.calibration import calibrate_noise
from privfm.dp.events import SampledGaussian
from privfm.dp.filter import RdpFilter
from privfm.dp.ledger import Ledger
from privfm.federation.planning import complete_plan
from privfm.federation.room import Room, fitting_epsilon, room_advice, room_for
from privfm.ids import HospitalId
from privfm.plan import Plan

NAMES = [HospitalId(f"hospital-{i}") for i in (1, 2, 3)]
SPENT = SampledGaussian(0.5, 2.0, 2)


@pytest.fixture
def plan(tiny_plan: Callable[..., Plan]) -> Plan:
    return complete_plan(tiny_plan(), dict.fromkeys(NAMES, 10), clip_norm=1.0)


def spend(folder: Path, cap: float | None, rounds: int = 3) -> None:
    """Make hospital-1's ledger, with some rounds charged."""
    with Ledger.create(folder / "hospital-1.sqlite", "hospital-1") as ledger:
        ledger.open_run("earlier", bytes(32), [SPENT], rounds=rounds, retry_rounds=0)
        for number in range(rounds):
            ledger.close(ledger.charge("earlier", number, 0, context=bytes(32)), "released")
        if cap is not None:
            ledger.set_cap(RdpFilter.for_cap(cap, 1e-5))


def room(plan: Plan, folder: Path, hospital: int = 0) -> Room:
    return room_for(plan, plan.hospitals[hospital], folder)


def test_without_a_ledger_or_a_cap_everything_fits(plan: Plan, tmp_path: Path) -> None:
    spend(tmp_path, None)
    known, new = room(plan, tmp_path), room(plan, tmp_path, 1)
    assert (known.new, new.new) == (False, True)
    assert known.fits
    assert new.fits
    assert known.epsilon_after > known.epsilon_before > 0 == new.epsilon_before
    assert known.epsilon_that_fits is known.rounds_that_fit is None


@pytest.mark.parametrize("cap", [6.0, 9.0, 20.0])
def test_the_epsilon_that_is_told_fits_and_leaves_little(plan: Plan, tmp_path: Path, cap: float) -> None:
    spend(tmp_path, cap)
    found = room(plan, tmp_path)
    assert found.fits == (cap == 20.0)
    assert found.epsilon_that_fits is not None
    assert (found.epsilon_that_fits < 8.0) == (cap < 20.0)
    with Ledger.open(tmp_path / "hospital-1.sqlite", read_only=True) as ledger:
        assert ledger.cap is not None
        events, filtered = ledger.events(), ledger.cap

    def admitted(epsilon: float) -> bool:
        noise = calibrate_noise(epsilon=epsilon, delta=1e-5, sample_rate=0.5, steps=plan.reserved_steps)
        return filtered.admits([*events, SampledGaussian(0.5, noise, plan.reserved_steps)])

    assert admitted(found.epsilon_that_fits)
    assert not admitted(1.1 * found.epsilon_that_fits)


def test_a_cap_that_is_used_up_has_no_epsilon_that_fits(plan: Plan, tmp_path: Path) -> None:
    spend(tmp_path, 1.0)
    found = room(plan, tmp_path)
    assert (found.fits, found.rounds_that_fit, found.epsilon_that_fits) == (False, 0, None)
    assert "no noise makes room" in room_advice([found.epsilon_that_fits, 3.0])


def test_the_advice_suits_every_hospital() -> None:
    assert room_advice([3.21, 2.5]).endswith("all of it fits with --epsilon 2.5")


def test_a_cap_in_another_delta_is_tried_with_the_planned_noise(plan: Plan) -> None:
    cap = RdpFilter.for_cap(4.0, 1e-7)
    told = fitting_epsilon(cap, plan, plan.hospitals[0], [])
    assert told is not None
    noise = calibrate_noise(epsilon=told, delta=1e-5, sample_rate=0.5, steps=plan.reserved_steps)
    assert cap.admits([SampledGaussian(0.5, noise, plan.reserved_steps)])
