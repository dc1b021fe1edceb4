from collections.abc import Callable
from typing import Any

import pytest

from privfm.dp import calibration
from privfm.dp.accounting import epsilon
from privfm.dp.workers import ask_workers
from privfm.errors import PlanError
from privfm.federation.network import backbone_spec
from privfm.federation.planning import complete_plan, mechanism_of, update_weight, vector_spec
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan

UNITS = {HospitalId("a"): 10, HospitalId("b"): 20, HospitalId("c"): 30}


def test_every_hospital_stays_within_its_epsilon_with_all_retries() -> None:
    plan = complete_plan(parse_plan({"privacy": {"epsilon": 5.0}}), UNITS, 1.0)
    for hospital in plan.hospitals:
        spent = epsilon([mechanism_of(plan, hospital).event(plan.reserved_steps)], plan.privacy.delta)
        assert 0.99 * 5.0 <= spent <= 5.0


def test_a_hospital_may_have_a_smaller_limit_and_its_own_rate() -> None:
    own = {"id": "a", "nominal_units": 10, "epsilon": 2.0, "sample_rate": 0.1}
    others = [{"id": name, "nominal_units": 10} for name in ("b", "c")]
    plan = complete_plan(parse_plan({"hospitals": [own, *others]}), {}, 1.0)
    first = plan.hospital(HospitalId("a"))
    assert epsilon([mechanism_of(plan, first).event(plan.reserved_steps)], 1e-5) <= 2.0
    assert mechanism_of(plan, first).sample_rate == 0.1


def test_a_noise_multiplier_that_spends_too_much_is_refused() -> None:
    hospitals = [{"id": name, "nominal_units": 10, "noise_multiplier": 0.5} for name in ("a", "b", "c")]
    with pytest.raises(PlanError, match=r"noise_multiplier 0\.5 would spend"):
        complete_plan(parse_plan({"hospitals": hospitals}), {}, 1.0)


def test_without_dp_noise_is_next_to_none_and_charged_as_that() -> None:
    plan = complete_plan(parse_plan({"privacy": {"dp": False}}), UNITS, 1.0)
    mechanism = mechanism_of(plan, plan.hospitals[0])
    assert mechanism.noise_std * mechanism.divisor == pytest.approx(1e-6)
    assert epsilon([mechanism.event(plan.planned_steps)], plan.privacy.delta) > 1e12
    with pytest.raises(PlanError, match="adam-bc takes the noise's part out"):
        complete_plan(parse_plan({"privacy": {"dp": False}, "optimizer": {"name": "adam-bc"}}), UNITS, 1.0)


def test_a_delta_beyond_what_can_be_computed_is_refused_in_a_line() -> None:
    with pytest.raises(PlanError, match="privacy: epsilon 8, delta 1e-15"):
        complete_plan(parse_plan({"privacy": {"delta": 1e-15}}), UNITS, 1.0)


def test_equal_hospitals_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out: list[float] = []
    search = calibration._search

    def counted(*arguments: Any) -> float:
        if arguments[2] == calibration._BAND:
            worked_out.append(arguments[1])
        return search(*arguments)

    monkeypatch.setattr(calibration, "_search", counted)
    calibration._calibrated.cache_clear()
    hospitals = [
        {"id": f"h{i}", "nominal_units": 10 + i, "epsilon": 1.5 + i % 3, "sample_rate": 0.3} for i in range(100)
    ]
    plan = complete_plan(parse_plan({"hospitals": hospitals}), {}, 1.0)
    assert worked_out == [1.5, 2.5, 3.5]
    assert len({each.noise_multiplier for each in plan.hospitals}) == 3


def test_many_different_hospitals_are_worked_out_by_several_processes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def counted(program: str, jobs: list[Any], processes: int) -> list[Any]:
        started.append(processes)
        return ask_workers(program, jobs, processes)

    monkeypatch.setattr(calibration, "ask_workers", counted)
    hospitals = [{"id": f"h{i}", "nominal_units": 10, "sample_rate": 0.1 + i / 100} for i in range(24)]
    plan = parse_plan({"hospitals": hospitals, "privacy": {"epsilon": 3.3}})
    whole = complete_plan(plan, {}, 1.0)
    assert complete_plan(plan, {}, 1.0) == whole
    assert started == [2]
    for hospital in whole.hospitals:
        assert 0.995 * 3.3 <= epsilon([mechanism_of(whole, hospital).event(24)], 1e-5) <= 3.3


def test_a_complete_plan_is_complete_and_stays_as_it_is() -> None:
    plan = complete_plan(parse_plan({}), UNITS, 0.25)
    assert plan.privacy.clip_norm == 0.25
    assert complete_plan(plan, {}, 9.0) == plan


def test_public_weights_average_to_one() -> None:
    plan = complete_plan(parse_plan({}), UNITS, 1.0)
    assert sum(update_weight(plan, hospital) for hospital in plan.hospitals) == pytest.approx(3)


@pytest.mark.parametrize(
    ("secagg", "message"),
    [
        ({"threshold": 2}, "secagg.threshold: 2 of 3"),
        ({"threshold": 4}, "secagg.threshold: 4 of 3"),
        ({"max_corrupt": 2}, "secagg.max_corrupt: 2"),
    ],
)
def test_rules_of_the_masking_are_checked_before_anything_runs(secagg: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        complete_plan(parse_plan({"secagg": secagg}), UNITS, 1.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_clamp_leaves_room_for_noise(optimizer: str, tiny_plan: Callable[..., Plan]) -> None:
    plan = complete_plan(parse_plan({"optimizer": {"name": optimizer, "learning_rate": 0.5}}), UNITS, 1.0)
    spec = vector_spec(plan, 100)
    for hospital in plan.hospitals:
        mechanism = mechanism_of(plan, hospital)
        noise = 0.5 * mechanism.noise_multiplier / mechanism.divisor if optimizer == "sgd" else 0.5
        assert spec.clip >= 2 * update_weight(plan, hospital) * noise


def test_a_plan_that_is_not_complete_runs_nowhere() -> None:
    plan = parse_plan({"hospitals": [{"id": name, "nominal_units": 10} for name in ("a", "b", "c")]})
    with pytest.raises(ValueError, match="complete the plan"):
        mechanism_of(plan, plan.hospitals[0])
    with pytest.raises(ValueError, match="complete it"):
        vector_spec(plan, 10)


@pytest.mark.parametrize(("size", "patch"), [(17, 4), (16, 5)])
def test_patches_that_do_not_cover_an_image_are_refused(size: int, patch: int) -> None:
    plan = parse_plan({"data": {"image_size": size}, "model": {"patch_size": patch}})
    with pytest.raises(PlanError, match=f"image_size: {size} is no multiple of the patch size {patch}"):
        backbone_spec(plan)
