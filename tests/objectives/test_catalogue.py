from __future__ import annotations

import pytest

from privfm.errors import PlanError
from privfm.objectives import Objective, get_objective
from privfm.objectives.catalogue import COUPLED


def test_options_reach_the_objective() -> None:
    objective = get_objective("mae", mask_ratio=0.6, decoder_depth=2)
    assert isinstance(objective, Objective)
    assert (objective.name, objective.mask_ratio, objective.decoder_depth) == ("mae", 0.6, 2)


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_batch_coupled_objectives_are_refused_by_name(name: str) -> None:
    with pytest.raises(PlanError) as refusal:
        get_objective(name)
    assert name in str(refusal.value)
    assert COUPLED[name] in str(refusal.value)
    assert "mae" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["simclr", "barlowtwins", "vicreg", "moco", "byol", "dino", "swav"])
def test_the_well_known_ones_are_known(name: str) -> None:
    assert name in COUPLED


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(PlanError, match="unknown; use mae"):
        get_objective("mea")


@pytest.mark.parametrize("options", [{"mask_ratio": 2.0}, {"mask": 0.5}])
def test_options_that_do_not_fit_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(PlanError, match=r"objective mae: .*mask"):
        get_objective("mae", **options)
