"""Hospitals' properties are read off sums where participation allows, at the run's own noise, and only there."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from privfm_attacks import rehearsal
from privfm_attacks.disaggregation import ridge
from privfm_attacks.distribution import read_final_models
from privfm_attacks.measuring import Effort, Told, _shorter
from privfm_attacks.participation import Participation, leaving_out_in_turn
from privfm_attacks.pooling import Pooled, Scored, pool
from privfm_attacks.property import _verdict, audit_property
from privfm_attacks.rehearsal import Hospitals, rehearse
from privfm_attacks.stand_in import Bank, StandIn
from privfm_attacks.verdicts import Verdict

from privfm.federation.planning import complete_plan
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan

LITTLE = Effort(federations=3, control_federations=4, rounds=12, models=2, patients=300)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def plan_of(units: int = 50, hospitals: int = 5, **sections: dict[str, Any]) -> Plan:
    base: dict[str, dict[str, Any]] = {"privacy": {"epsilon": 8.0}, "federation": {"rounds": 10}}
    names = [HospitalId(f"h{place}") for place in range(hospitals)]
    return complete_plan(parse_plan(base | sections), dict.fromkeys(names, units), 0.05)


@pytest.fixture(scope="module")
def stand_in() -> StandIn:
    torch.set_num_threads(1)
    return StandIn(plan_of())


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank.made(1, 300, 1)


def equal(hospitals: int = 8, noise: float = 0.0, **changes: Any) -> Hospitals:
    ones = np.ones(hospitals)
    made = Hospitals(12 * ones.astype(np.int64), ones, noise * ones, ones, 1, (0.1, 0.9))
    return replace(made, **changes)


NAMES = tuple("abcdefgh")


def half(rng: np.random.Generator, rounds: int = 16) -> Participation:
    drawn = [frozenset(np.array(NAMES)[rng.permutation(8)[:4]].tolist()) for _ in range(rounds)]
    return Participation(NAMES, tuple(drawn))


def pooled(stand_in: StandIn, bank: Bank, hospitals: Hospitals, *, shuffled: bool = False) -> Pooled:
    rng, found = np.random.default_rng(0), []
    for _ in range(4):
        labels = rng.permutation(8) < 4
        run = rehearse(stand_in, bank, hospitals, half(rng), labels, rng)
        weights = rng.permuted(run.weights, axis=1) if shuffled else run.weights
        found.append(Scored(ridge(weights, run.readings), labels))
    return pool(found, rng)


def test_half_of_them_without_noise_are_told_apart(stand_in: StandIn, bank: Bank) -> None:
    found = pooled(stand_in, bank, equal())
    assert found.auc >= 0.9
    assert found.p < 0.01


def test_with_a_shuffled_matrix_they_are_not(stand_in: StandIn, bank: Bank) -> None:
    assert pooled(stand_in, bank, equal(), shuffled=True).auc < 0.8


def test_noise_without_end_hides_them(stand_in: StandIn, bank: Bank) -> None:
    assert pooled(stand_in, bank, equal(noise=1e4)).auc < 0.8


def test_a_property_that_nobody_has_more_of_is_not_told(stand_in: StandIn, bank: Bank) -> None:
    assert pooled(stand_in, bank, equal(share=(0.5, 0.5))).auc < 0.8


def test_a_reading_is_how_much_weight_has_the_property(stand_in: StandIn, bank: Bank) -> None:
    rng, hospitals = np.random.default_rng(1), equal(units=np.full(8, 100), weight=np.linspace(0.5, 2.0, 8))
    labels = np.arange(8) % 2 == 0
    run = rehearse(stand_in, bank, hospitals, half(rng, 20), labels, rng)
    assert float(np.mean(run.readings - run.weights @ labels)) == pytest.approx(0.0, abs=0.5)
    assert float(np.corrcoef(run.readings, run.weights @ labels)[0, 1]) > 0.8


def test_updates_carry_the_declared_noise(stand_in: StandIn, bank: Bank) -> None:
    rng = np.random.default_rng(2)
    hospitals = equal(noise=2.0, steps=4)
    gradients = torch.zeros(5, 20_000)
    counts, weights = np.ones((8, 5), dtype=np.int64), np.ones(8)
    released = rehearsal._released(gradients, counts, hospitals, weights, rng)
    assert float(released.std()) == pytest.approx(2.0 / 12 / 2 * 8**0.5, rel=0.03)


def test_every_patient_is_one_hospital_s_while_there_are_enough() -> None:
    rng = np.random.default_rng(3)
    few = rehearsal._dealt(np.array([10, 20, 30]), rng)
    assert few.shape == (3, 60)
    assert few.sum(axis=0).tolist() == [1] * 60
    many = rehearsal._dealt(np.array([200, 100]), rng)
    assert many.shape[1] == rehearsal.SUPPLY
    assert many.sum(axis=1).tolist() == [200, 100]


def test_gradients_are_clipped(stand_in: StandIn, bank: Bank) -> None:
    rows = stand_in.rows(stand_in.start, bank.views[0][:40], 0)
    norms = rows.norm(dim=1)
    assert float(norms.max()) <= 1 + 1e-5
    assert 0 < int((norms < 1 - 1e-5).sum()) < 40
    again = stand_in.rows(stand_in.start + 1.0, bank.views[0][:40], 0)
    assert not torch.allclose(rows, again)


def test_final_models_tell_what_all_patients_share(stand_in: StandIn, bank: Bank) -> None:
    rng = np.random.default_rng(4)
    hospitals = equal(4, units=np.full(4, 40), share=(0.2, 0.8))
    told = read_final_models(stand_in, bank, hospitals, 4, 3, rng)
    assert told.auc > 0.9
    assert told.leaked > 0.5
    blind = read_final_models(stand_in, bank, replace(hospitals, noise=np.full(4, 1e4)), 4, 3, rng)
    assert blind.leaked_low == 0.0


def test_an_audit_of_a_plan() -> None:
    result = audit_property(plan_of(federation={"rounds": 6}), effort=LITTLE)
    assert result.verdict is Verdict.NO_LEAK_DETECTED
    assert (result.figures["run_auc"], result.figures["run_rank"]) == (0.5, 1)
    assert result.figures["in_turn_rank"] == 5
    assert (result.figures["everybody_auc"], result.figures["everybody_rank"]) == (0.5, 1)
    assert result.figures["control_auc"] >= 0.9
    assert result.figures["control_p"] < 0.01
    assert "rank 1 of 5" in result.sentence
    (over_rounds,) = result.plots
    curves = {name: [area for _, area in points] for name, points in over_rounds.curves.items()}
    assert curves["no noise, half in every sum"][0] < 0.8 < curves["no noise, half in every sum"][-1]
    assert curves["no noise, half in every sum"][-1] == pytest.approx(result.figures["control_auc"])
    assert set(curves["no noise, all in every sum"]) == set(curves["this run's sums"]) == {0.5}
    json.dumps(result.to_json(), allow_nan=False)


def test_a_plan_that_lets_nobody_be_left_out_says_so() -> None:
    little = replace(LITTLE, federations=2, control_federations=2, rounds=3)
    result = audit_property(plan_of(secagg={"threshold": 5}), effort=little)
    assert "lets nobody be left out" in result.sentence
    assert result.figures["in_turn_rank"] == 1


def test_changing_survivors_under_little_noise_are_a_leak() -> None:
    plan = plan_of(units=48, hospitals=8, privacy={"epsilon": 100.0, "sample_rate": 1.0}, federation={"rounds": 12})
    little = replace(LITTLE, federations=5, control_federations=2, models=1)
    result = audit_property(plan, leaving_out_in_turn(plan), little)
    assert result.verdict is Verdict.LEAK
    assert result.figures["run_low"] > 0.6


def test_an_attack_that_cannot_see_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(lacking: torch.Tensor, having: torch.Tensor, variance: float) -> tuple[torch.Tensor, float]:
        return torch.randn(lacking.shape[1], generator=torch.Generator().manual_seed(0)), 0.0

    monkeypatch.setattr(rehearsal, "linear_attack", blind)
    little = replace(LITTLE, federations=2, rounds=6)
    assert audit_property(plan_of(federation={"rounds": 2}), effort=little).verdict is Verdict.INCONCLUSIVE


def told(auc: float, low: float, p: float, rank: int = 1) -> Told:
    return Told({"ridge": Pooled(auc, low, 1.0, p)}, rank, 8, ())


SEEN, BLIND = told(0.97, 0.93, 0.001, 8), told(0.5, 0.5, 1.0)


@pytest.mark.parametrize(
    ("run", "control", "everybody", "verdict"),
    [
        (BLIND, SEEN, BLIND, Verdict.NO_LEAK_DETECTED),
        (told(0.8, 0.7, 0.001), SEEN, BLIND, Verdict.LEAK),
        (told(0.8, 0.7, 0.02), SEEN, BLIND, Verdict.NO_LEAK_DETECTED),
        (told(0.65, 0.55, 0.001), SEEN, BLIND, Verdict.NO_LEAK_DETECTED),
        (BLIND, told(0.89, 0.8, 0.001), BLIND, Verdict.INCONCLUSIVE),
        (BLIND, told(0.95, 0.8, 0.02), BLIND, Verdict.INCONCLUSIVE),
        (BLIND, SEEN, told(0.7, 0.6, 0.01), Verdict.INCONCLUSIVE),
        (BLIND, SEEN, told(0.5, 0.5, 1.0, rank=8), Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts(run: Told, control: Told, everybody: Told, verdict: Verdict) -> None:
    assert _verdict({"run": run, "in turn": SEEN, "control": control, "everybody": everybody}) is verdict


def test_long_runs_are_rehearsed_in_fewer_rounds() -> None:
    names = tuple("abcde")
    sums = [frozenset(names)] * 1000
    sums[500] = frozenset("abcd")
    shorter = _shorter(Participation(names, tuple(sums)), 100)
    assert 100 <= len(shorter.sums) <= 102
    assert shorter.rank == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"objective": {"name": "simclr"}},
        {"objective": {"name": "dino"}},
        {"model": {"trainable": "lora"}},
        {"model": {"trainable": "last-2", "init": "scratch"}},
        {"optimizer": {"name": "sgd"}, "privacy": {"clip_quantile": 0.5}},
        {"data": {"channels": 3}},
    ],
    ids=["simclr", "dino", "lora", "last blocks", "adaptive", "colour"],
)
def test_other_plans_have_a_control_that_is_caught(sections: dict[str, dict[str, Any]]) -> None:
    result = audit_property(plan_of(**sections), effort=LITTLE)
    assert result.figures["control_auc"] >= 0.9


@pytest.mark.slow
def test_the_whole_effort() -> None:
    result = audit_property(plan_of())
    assert result.verdict is Verdict.NO_LEAK_DETECTED
    assert result.figures["control_auc"] >= 0.9
    assert result.figures["control_p"] < 0.01
    assert result.figures["everybody_auc"] == 0.5
