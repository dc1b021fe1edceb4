from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privfm.errors import DataError, PlanError
from privfm.federation.cohort import gather_cohort
from privfm.federation.planning import complete_plan
from privfm.plan import Plan

TinyPlan = Callable[..., Plan]


def write_folder(root: Path, patients: dict[str, list[str]]) -> Path:
    """Two random pictures of every patient of every hospital."""
    rng = np.random.default_rng(0)
    for hospital, names in patients.items():
        for name in names:
            folder = root / hospital / name
            folder.mkdir(parents=True)
            for image in range(2):
                pixels = rng.integers(0, 255, (20, 20), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{image}.png")
    return root


def own(root: Path, tiny_plan: TinyPlan, **data: object) -> Plan:
    return tiny_plan(data={"source": str(root), "patients": None, **data})


THREE = {"a": ["1", "2", "3"], "b": ["4", "5"], "c": ["6", "7"]}


def test_a_patient_more_changes_no_public_number(tiny_plan: TinyPlan, tmp_path: Path) -> None:
    few = own(write_folder(tmp_path / "few", THREE), tiny_plan)
    more = own(write_folder(tmp_path / "more", THREE | {"b": ["4", "5", "8"]}), tiny_plan)
    plans = [complete_plan(plan, gather_cohort(plan).nominal_units, 1.0) for plan in (few, more)]
    assert plans[0].hospitals == plans[1].hospitals
    assert plans[0].secagg == plans[1].secagg
    assert len(gather_cohort(more).images["b"].patients) == 3  # type: ignore[index]


def test_the_probe_stays_off_on_ones_own_images(tiny_plan: TinyPlan, tmp_path: Path) -> None:
    cohort = gather_cohort(own(write_folder(tmp_path / "data", THREE), tiny_plan))
    assert cohort.probe_test is None
    assert cohort.assumed


def test_the_probe_needs_labels(tiny_plan: TinyPlan, tmp_path: Path) -> None:
    plan = own(write_folder(tmp_path / "data", THREE), tiny_plan).model_copy(
        update={"evaluation": tiny_plan(evaluation={"probe": True}).evaluation}
    )
    with pytest.raises(DataError, match="no labels"):
        gather_cohort(plan)


@pytest.mark.parametrize(("declared", "places"), [(1, ["a", "b"]), (2, ["a", "b", "c"])])
def test_patients_at_more_hospitals_than_declared_are_refused(
    tiny_plan: TinyPlan, tmp_path: Path, declared: int, places: list[str]
) -> None:
    patients = {hospital: [*THREE[hospital], *(["shared"] if hospital in places else [])] for hospital in THREE}
    plan = own(write_folder(tmp_path / "data", patients), tiny_plan, max_hospitals_per_patient=declared)
    with pytest.raises(DataError):
        gather_cohort(plan)


def test_a_declared_shared_patient_is_accepted(tiny_plan: TinyPlan, tmp_path: Path) -> None:
    patients = {hospital: [*names, *(["shared"] if hospital != "c" else [])] for hospital, names in THREE.items()}
    plan = own(write_folder(tmp_path / "data", patients), tiny_plan, max_hospitals_per_patient=2)
    assert len(gather_cohort(plan).images) == 3


def test_hospitals_of_plan_and_images_must_be_the_same(tiny_plan: TinyPlan, tmp_path: Path) -> None:
    plan = own(write_folder(tmp_path / "data", THREE), tiny_plan)
    named = Plan.model_validate(
        plan.model_dump() | {"hospitals": [{"id": name, "nominal_units": 5} for name in ("a", "b", "x")]}
    )
    with pytest.raises(PlanError, match="c, x"):
        gather_cohort(named)


def test_builtin_images_declare_their_public_split(tiny_plan: TinyPlan) -> None:
    cohort = gather_cohort(tiny_plan())
    assert dict(cohort.nominal_units) == {name: len(images.patients) for name, images in cohort.images.items()}
    assert not cohort.assumed


def test_too_few_patients_are_told_with_those_that_are_held_out(tiny_plan: TinyPlan) -> None:
    data = {"source": "phantom", "patients": 60, "image_size": 16, "hospitals": 3, "min_patients": 20}
    with pytest.raises(DataError, match=r"60 patients, 15 of them held out for the probe \(--no-probe keeps them\)"):
        gather_cohort(tiny_plan(data=data))
    assert len(gather_cohort(tiny_plan(data=data, evaluation={"probe": False})).images) == 3
    with pytest.raises(DataError, match=r"phantom: 59 patients do not give 3 hospitals 20 each \(data.min_patients\)"):
        gather_cohort(tiny_plan(data=data | {"patients": 59}, evaluation={"probe": False}))
