from __future__ import annotations

from pathlib import Path

import pytest

from privfm.coupling import COUPLING_OPTIONS
from privfm.errors import PlanError
from privfm.objectives import Objective, get_objective
from privfm.objectives.catalogue import COUPLED, OBJECTIVES


def test_options_reach_the_objective() -> None:
    objective = get_objective("mae", mask_ratio=0.6, decoder_depth=2)
    assert isinstance(objective, Objective)
    assert (objective.name, objective.mask_ratio, objective.decoder_depth) == ("mae", 0.6, 2)


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_batch_coupled_objectives_are_refused_by_name_with_the_sound_form(name: str) -> None:
    why, instead = COUPLED[name]
    with pytest.raises(PlanError) as refusal:
        get_objective(name)
    assert str(refusal.value).startswith(f"objective {name}: {why}")
    assert f"use {instead}" in str(refusal.value)
    assert get_objective(instead).name == instead
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["barlowtwins", "vicreg", "moco", "swav"])
def test_the_well_known_ones_are_known(name: str) -> None:
    assert name in COUPLED


@pytest.mark.parametrize("name", OBJECTIVES)
def test_names_are_their_own(name: str) -> None:
    objective = get_objective(name)
    assert isinstance(objective, Objective)
    assert objective.name == name
    assert "Source: " in (type(objective).__doc__ or "")
    assert "unit" in (type(objective).__doc__ or "")


@pytest.mark.parametrize("option", sorted(COUPLING_OPTIONS))
@pytest.mark.parametrize("name", ["byol", "dino", "simclr"])
def test_options_that_would_couple_patients_again_are_refused(name: str, option: str) -> None:
    with pytest.raises(PlanError, match=f"objective {name}: {option} .*(public images|layer norm|released model)"):
        get_objective(name, **{option: 0.9})


def test_a_centre_of_the_batch_is_refused() -> None:
    with pytest.raises(PlanError, match=r"objective dino: centre=batch .*use public, or none"):
        get_objective("dino", centre="batch")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simclr", {"temperature": 0.0}),
        ("simclr", {"negatives": 0}),
        ("dino", {"prototypes": 0}),
        ("simsiam", {"public": 1}),
        ("byol", {"min_area": 0.0}),
        ("byol", {"tone": 2.0}),
        ("simmim", {"mask_ratio": 1.0}),
        ("simsiam", {"width": 0}),
    ],
)
def test_numbers_out_of_range_are_named(name: str, options: dict[str, float]) -> None:
    ((key, value),) = options.items()
    with pytest.raises(PlanError, match=f"objective {name}: {key}={value}"):
        get_objective(name, **options)


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(PlanError, match="unknown; use mae"):
        get_objective("mea")


@pytest.mark.parametrize("options", [{"mask_ratio": 2.0}, {"mask": 0.5}])
def test_options_that_do_not_fit_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(PlanError, match=r"objective mae: .*mask"):
        get_objective("mae", **options)


def test_the_documentation_lists_what_there_is_and_what_is_refused() -> None:
    text = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    for name in (*OBJECTIVES, *COUPLED, *COUPLING_OPTIONS):
        assert f"`{name}`" in text, name
    for name, (_, instead) in COUPLED.items():
        (row,) = [line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line]
        assert row.endswith(f"| `{instead}` |")


def test_a_refused_option_names_the_keys_that_a_plan_has() -> None:
    with pytest.raises(PlanError, match=r"takes no tone; it takes mask_ratio$"):
        get_objective("mae", tone=0.5)
