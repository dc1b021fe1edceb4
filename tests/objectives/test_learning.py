"""Every objective learns without privacy: its features beat a random backbone's and noise's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from privfm.objectives import get_objective
from privfm.objectives.catalogue import OBJECTIVES


def _loaded() -> ModuleType:
    """The benchmark, by its file: another distribution installs a package of the name `benchmarks`."""
    path = Path(__file__).parents[2] / "benchmarks" / "objectives.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_objectives", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


benchmark = _loaded()


def test_the_benchmark_tries_all() -> None:
    assert set(benchmark.RECIPES) == set(OBJECTIVES)


def test_intervals_are_wider_than_independent_splits_would_make_them() -> None:
    found = benchmark.interval([0.02, 0.03, 0.04, 0.05])
    assert found.mean == pytest.approx(0.035)
    plain = 3.182 * 0.01291 / 4**0.5
    assert found.high - found.mean == pytest.approx(plain * (1 + 4 / 3) ** 0.5, rel=1e-3)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_one_split_says_nothing_about_the_next() -> None:
    found = benchmark.interval([0.1])
    assert (found.low, found.high) == (-float("inf"), float("inf"))


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmark.RECIPES)
def test_features_beat_a_random_backbone_s_and_noise_s(name: str) -> None:
    fit, test = benchmark.split(1)
    recipe = benchmark.RECIPES[name]
    trained = benchmark.probe(benchmark.train(get_objective(name), fit, recipe, 1), fit, test)
    assert trained > benchmark.probe(benchmark.shake(recipe, 1), fit, test)
    assert trained > benchmark.probe(benchmark.build_backbone(benchmark.SPEC, 1), fit, test)
