"""The mechanism audit names what goes wrong between a hospital's steps and the sum: ledgers, retries, drop-outs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from privfm_attacks.whole_rounds import whole_rounds

from privfm.dp.events import compose
from privfm.dp.ledger import Declaration, Ledger
from privfm.federation import hospital as hospital_module
from privfm.federation import simulation as simulation_module
from privfm.federation.hospital import Hospital
from privfm.federation.ledgers import declaration_for
from privfm.federation.planning import complete_plan
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan
from privfm.secagg import Client, LedgerMark
from privfm.secagg import client as client_module

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


def plan_of(sample_rate: float = 0.5, more: dict[str, Any] | None = None, **privacy: Any) -> Plan:
    whole: dict[str, dict[str, Any]] = {
        "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3, "min_patients": 4},
        "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
        "privacy": {"images_per_unit": 2, "views": 1, "sample_rate": sample_rate, **privacy},
        "federation": {"rounds": 1, "local_steps": 3, "retry_rounds": 2},
        "performance": {"device": "cpu", "threads": 1},
        **(more or {}),
    }
    return complete_plan(parse_plan(whole), {HospitalId(name): 40 for name in ("a", "b", "c")}, 0.3)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


SHOWN = {"evaluation": {"local_loss": True, "loss_bound": 2.0}}


@pytest.mark.parametrize(
    "plan",
    [
        plan_of(),
        plan_of(0.05, clip_quantile=0.5, noise_terms=4),
        plan_of(1.0, SHOWN, clip_quantile=0.5),
        plan_of(dp=False),
        plan_of(more={"secagg": {"modulus_bits": 16}, "optimizer": {"name": "sgd"}}),
        plan_of(more={"performance": {"device": "cpu", "precision": "bfloat16"}}),
    ],
    ids=["usual", "adaptive", "all shown", "no dp", "narrow ring", "bfloat16"],
)
def test_sound_rounds_pass(plan: Plan) -> None:
    findings = list(whole_rounds(plan))
    assert [finding for finding in findings if not finding.passed] == []
    assert {"sum", "sum after a drop-out", "sum asked for again", "sum computed anew", "ledger"} <= {
        finding.check for finding in findings
    }


_compute, _vectors, _charge = Hospital._compute, Hospital._vectors, Ledger.charge


def noise_times(self: Hospital, factor: float, current: Any, attempt: int) -> list[torch.Tensor]:
    releases = self._releases
    kept = releases.mechanism
    releases.mechanism = replace(kept, noise_multiplier=factor * kept.noise_multiplier)
    try:
        return _compute(self, current, attempt)
    finally:
        releases.mechanism = kept


def one_draws_noise_for_all(patch: Patch) -> None:
    """Whose noise is lost when that one drops out."""

    def compute(self: Hospital, current: Any, attempt: int) -> list[torch.Tensor]:
        return noise_times(self, 5**0.5 if self.name == "bench-4" else 1e-9, current, attempt)

    patch.setattr(Hospital, "_compute", compute)


def noise_lost_with_who_drops_out(patch: Patch) -> None:
    """A hospital that hears that others dropped out computes anew, and takes the noise for sent."""

    def vectors(self: Hospital, current: Any) -> list[np.ndarray]:
        if not current.announcement.attempt:
            return _vectors(self, current)
        return self._quantised(noise_times(self, 1e-9, current, 0), current, 0)

    patch.setattr(Hospital, "_vectors", vectors)


def retries_computed_anew(patch: Patch) -> None:
    def vectors(self: Hospital, current: Any) -> list[np.ndarray]:
        if not current.announcement.attempt:
            return _vectors(self, current)
        return self._quantised(_compute(self, current, 1), current, 1)

    patch.setattr(Hospital, "_vectors", vectors)


def mean_of_two(patch: Patch) -> None:
    def compute(self: Hospital, current: Any, attempt: int) -> list[torch.Tensor]:
        return [sum(both) / 2 for both in zip(*(_compute(self, current, n) for n in (attempt, 9)), strict=True)]

    patch.setattr(Hospital, "_compute", compute)


def a_look_before_the_charge(patch: Patch) -> None:
    def vectors(self: Hospital, current: Any) -> list[np.ndarray]:
        if not current.announcement.attempt:
            _compute(self, current, 5)
        return _vectors(self, current)

    patch.setattr(Hospital, "_vectors", vectors)


def weighed_by_true_numbers(patch: Patch) -> None:
    def quantised(self: Hospital, values: Any, current: Any, attempt: int) -> list[np.ndarray]:
        counted = [len(self.units) / 40 * value for value in values]
        return _quantised(self, counted, current, attempt)

    patch.setattr(Hospital, "_quantised", quantised)


_quantised = Hospital._quantised


def a_step_not_declared(patch: Patch) -> None:
    def declared(*given: Any, **more: Any) -> Declaration:
        true = declaration_for(*given, **more)
        return replace(true, per_round=compose([replace(event, steps=event.steps - 1) for event in true.per_round]))

    patch.setattr(simulation_module, "declaration_for", declared)


def charges_forgotten(patch: Patch) -> None:
    def charge(self: Ledger, run: str, number: int, attempt: int, context: bytes) -> Any:
        return _charge(self, run, 1, 0, context) if number == 1 else None

    patch.setattr(Ledger, "charge", charge)
    patch.setattr(Ledger, "store_update", lambda *_: None)
    patch.setattr(Ledger, "load_update", lambda *_: None)


def rounded_without_coins(patch: Patch) -> None:
    quantise = hospital_module.quantise
    patch.setattr(hospital_module, "quantise", lambda values, spec, _: quantise(values, spec, bytes(32)))


def new_generation_not_charged(patch: Patch) -> None:
    def vectors(self: Hospital, current: Any) -> list[np.ndarray]:
        pending = self.ledger.pending(self._run, current.number)
        if pending is not None and pending.context != self._memory().model:
            return self._quantised(_compute(self, current, 1), current, 1)
        return _vectors(self, current)

    patch.setattr(Hospital, "_vectors", vectors)


def no_end_of_charges(patch: Patch) -> None:
    patch.setattr(Declaration, "most_rounds", property(lambda self: 10**9))


def other_survivors(patch: Patch) -> None:
    agree = client_module.agree
    patch.setattr(client_module, "agree", lambda state, incoming, bound_to=None: agree(state, incoming))


def models_not_bound(patch: Patch) -> None:
    patch.setattr(Hospital, "_check_follows", lambda *_: None)


def masks_of_public_numbers(patch: Patch) -> None:
    advertise = Client.advertise

    def public(self: Client, mark: LedgerMark, *, answered: Any, entropy: bytes) -> bytes:
        return advertise(self, mark, answered=answered, entropy=bytes(32))

    patch.setattr(Client, "advertise", public)


PLANTED: dict[str, tuple[Plant, str]] = {
    "a new generation not charged": (new_generation_not_charged, "ledger"),
    "charges without end": (no_end_of_charges, "refused: more than the reserve"),
    "an update in two sums": (other_survivors, "refused: the same updates with fewer others"),
    "two models in one generation": (models_not_bound, "refused: another model under one name"),
    "masks of public numbers": (masks_of_public_numbers, "keys of masks"),
    "one draws the noise for all": (one_draws_noise_for_all, "sum after a drop-out"),
    "noise lost with who drops out": (noise_lost_with_who_drops_out, "sum asked for again"),
    "retries computed anew": (retries_computed_anew, "ledger"),
    "the mean of two": (mean_of_two, "ledger"),
    "a look before the charge": (a_look_before_the_charge, "charged before"),
    "weighed by true numbers": (weighed_by_true_numbers, "sum"),
    "a step not declared": (a_step_not_declared, "ledger"),
    "charges forgotten": (charges_forgotten, "ledger"),
    "rounded without coins": (rounded_without_coins, "sum"),
}  # fmt: skip


@pytest.mark.parametrize(("plant", "check"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_bug_is_named(plant: Plant, check: str, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert check in {finding.check for finding in whole_rounds(plan_of()) if not finding.passed}
