"""Accountants: one suite of laws for all of them, published values, and oracles that share no code with them."""

from __future__ import annotations

import csv
import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from privfm.dp import pld
from privfm.dp.accounting import ACCOUNTANTS, accountant_version, delta_for, epsilon, epsilon_curve, epsilon_over_steps
from privfm.dp.events import SampledGaussian, compose
from privfm.dp.sketch import sketch_delta, sketch_epsilon

ANCHORS = Path(__file__).parent.parent / "anchors" / "accounting.csv"
TIGHT = ("pld", "prv")
USUAL = (
    SampledGaussian(0.01, 1.2, 10_000),
    SampledGaussian(0.25, 10.0, 100),
    SampledGaussian(0.25, 60.0, 10_000),
    SampledGaussian(0.001, 0.6, 2_000),
    SampledGaussian(1.0, 30.0, 1_000),
    SampledGaussian(0.5, 3.0, 1),
)

pytestmark = pytest.mark.filterwarnings("ignore:Optimal order is", "ignore:The integral is probably divergent")
every_accountant = pytest.mark.parametrize("accountant", sorted(ACCOUNTANTS))


@every_accountant
def test_next_to_no_noise_costs_more_than_any_and_takes_no_time(accountant: str) -> None:
    private = SampledGaussian(0.5, 3.0, 10)
    costs = [epsilon([private, SampledGaussian(0.5, sigma, 1)], 1e-5, accountant) for sigma in (0.06, 0.049, 1e-6)]
    assert epsilon([private], 1e-5, accountant) < costs[0] < costs[1] < costs[2] < math.inf
    assert costs[2] > 1 / (2 * 1e-6**2)


def exact_gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle & Wang 2018, theorem 8: the Gaussian mechanism's own curve."""

    def excess(e: float) -> float:
        return float(ndtr(mu / 2 - e / mu) - math.exp(e + log_ndtr(-mu / 2 - e / mu)) - delta)

    return float(brentq(excess, 0.0, 500.0, xtol=1e-13))


def exact_one_step_delta(q: float, sigma: float, e: float) -> float:
    """Removal of a unit from one Poisson-sampled Gaussian, integrated by hand."""
    threshold = sigma**2 * math.log((math.exp(e) - (1 - q)) / q) + 0.5
    absent, present = ndtr(-threshold / sigma), ndtr((1 - threshold) / sigma)
    return float((1 - q) * absent + q * present - math.exp(e) * absent)


def anchors() -> list[dict[str, str]]:
    rows = [line.lstrip("# ") for line in ANCHORS.read_text().splitlines()[1:]]
    return list(csv.DictReader(rows))


# Published values


@every_accountant
@pytest.mark.parametrize(
    "row", anchors(), ids=lambda row: f"{row['accountant']}-{row['noise_multiplier']}-{row['steps']}"
)
def test_published_values(row: dict[str, str], accountant: str) -> None:
    """Nobody may need more than a published bound (rdp), nor claim less than a published estimate (prv)."""
    event = SampledGaussian(float(row["sample_rate"]), float(row["noise_multiplier"]), int(row["steps"]))
    published, tolerance = float(row["epsilon"]), float(row["tolerance"])
    found = epsilon([event], float(row["delta"]), accountant)
    if row["accountant"] == "rdp":
        assert found <= published * (1 + tolerance)
        return
    assert found >= published - tolerance
    if accountant in TIGHT:
        assert found <= published + tolerance


# Laws of all accountants


@every_accountant
class TestEveryAccountant:
    event = SampledGaussian(0.1, 2.0, 100)

    def test_nothing_done_costs_nothing(self, accountant: str) -> None:
        for nothing in ([], [SampledGaussian(0.1, 2.0, 0)]):
            assert epsilon(nothing, 1e-5, accountant) == 0.0
            assert delta_for(nothing, 0.0, accountant) == 0.0

    def test_more_of_anything_but_noise_and_delta_costs_more(self, accountant: str) -> None:
        base = epsilon([self.event], 1e-5, accountant)
        assert epsilon([SampledGaussian(0.1, 2.0, 150)], 1e-5, accountant) > base
        assert epsilon([SampledGaussian(0.12, 2.0, 100)], 1e-5, accountant) > base
        assert epsilon([SampledGaussian(0.1, 2.2, 100)], 1e-5, accountant) < base
        assert epsilon([self.event], 1e-4, accountant) < base
        assert epsilon([self.event, SampledGaussian(0.05, 3.0, 10)], 1e-5, accountant) > base

    def test_only_what_was_done_counts(self, accountant: str) -> None:
        other = SampledGaussian(0.05, 3.0, 10)
        whole = epsilon([self.event, other], 1e-5, accountant)
        halves = [other, SampledGaussian(0.1, 2.0, 40), SampledGaussian(0.1, 2.0, 60)]
        assert epsilon(halves, 1e-5, accountant) == whole

    def test_delta_undoes_epsilon(self, accountant: str) -> None:
        spent = epsilon([self.event], 1e-5, accountant)
        assert delta_for([self.event], spent, accountant) == pytest.approx(1e-5, rel=0.02)

    def test_never_below_the_exact_gaussian(self, accountant: str) -> None:
        for sigma, steps in ((5.0, 1), (30.0, 1000), (1.0, 4)):
            exact = exact_gaussian_epsilon(math.sqrt(steps) / sigma, 1e-6)
            found = epsilon([SampledGaussian(1.0, sigma, steps)], 1e-6, accountant)
            assert exact <= found <= 1.25 * exact

    def test_never_below_the_exact_gaussian_of_different_noises(self, accountant: str) -> None:
        events = [SampledGaussian(1.0, 8.0, 10), SampledGaussian(1.0, 20.0, 50), SampledGaussian(1.0, 3.0, 1)]
        exact = exact_gaussian_epsilon(math.sqrt(10 / 64 + 50 / 400 + 1 / 9), 1e-5)
        assert exact <= epsilon(events, 1e-5, accountant) <= 1.25 * exact

    def test_a_larger_epsilon_fails_less_often(self, accountant: str) -> None:
        deltas = [delta_for([self.event], asked, accountant) for asked in (0.0, 1.0, 2.0, 4.0)]
        assert all(more > less for more, less in itertools.pairwise(deltas))
        assert 0.0 < deltas[-1] < deltas[0] <= 1.0

    def test_never_below_one_exact_sampled_step(self, accountant: str) -> None:
        event = SampledGaussian(0.2, 1.0, 1)
        spent = epsilon([event], 1e-5, accountant)
        assert exact_one_step_delta(0.2, 1.0, spent) <= 1e-5

    def test_a_rarely_sampled_unit(self, accountant: str) -> None:
        most = 0.25 if accountant == "rdp" else 0.02  # the truth is 0: delta alone covers it
        assert 0.0 <= epsilon([SampledGaussian(1e-7, 1.0, 1000)], 1e-5, accountant) < most

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, math.inf])
    def test_delta_out_of_range_is_named(self, accountant: str, delta: float) -> None:
        with pytest.raises(ValueError, match=f"delta={delta}"):
            epsilon([self.event], delta, accountant)

    @pytest.mark.parametrize("asked", [-0.1, math.nan, math.inf])
    def test_epsilon_out_of_range_is_named(self, accountant: str, asked: float) -> None:
        with pytest.raises(ValueError, match=f"epsilon={asked}"):
            delta_for([self.event], asked, accountant)


def test_an_unknown_accountant_is_named() -> None:
    with pytest.raises(ValueError, match="accountant='gdp': must be one of pld, rdp, prv"):
        epsilon([SampledGaussian(0.1, 2.0, 1)], 1e-5, "gdp")


def test_versions_name_the_code_that_counted() -> None:
    assert accountant_version("pld").startswith("dp-accounting 0.")
    assert accountant_version("prv").startswith("opacus 1.")


# Accountants against each other


@settings(max_examples=25, deadline=None)
@given(
    q=st.floats(1e-3, 1.0),
    sigma=st.floats(0.7, 50.0),
    steps=st.integers(1, 2000),
    delta=st.sampled_from([1e-4, 1e-5, 1e-6]),
)
def test_the_tight_accountant_is_below_the_loose_one(q: float, sigma: float, steps: int, delta: float) -> None:
    event = SampledGaussian(q, sigma, steps)
    assert epsilon([event], delta, "pld") <= epsilon([event], delta, "rdp") * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("event", USUAL, ids=str)
def test_two_codes_agree(event: SampledGaussian) -> None:
    assert epsilon([event], 1e-5, "prv") == pytest.approx(epsilon([event], 1e-5, "pld"), rel=0.02)


# The PLD's grid


@pytest.mark.parametrize("event", USUAL, ids=str)
def test_a_finer_grid_changes_little_and_never_upwards(event: SampledGaussian) -> None:
    events = compose([event])
    grid = pld.settled_grid(events, 1e-5)
    on_grids = [pld.pld_epsilon_on_grid(events, 1e-5, grid / 2**k) for k in (0, 1, 3)]
    assert on_grids[0] == epsilon(events, 1e-5)
    assert on_grids[1] <= on_grids[0] <= on_grids[1] * 1.001
    assert on_grids[2] <= on_grids[0] <= on_grids[2] * 1.005


@pytest.mark.parametrize("events", [*([event] for event in USUAL), USUAL[:4]], ids=str)
def test_the_fast_double_reads_what_the_accountant_reads(events: list[SampledGaussian]) -> None:
    canonical = compose(events)
    grid = pld.settled_grid(canonical, 1e-5)
    spent = pld.pld_epsilon_on_grid(canonical, 1e-5, grid)
    assert sketch_epsilon(canonical, 1e-5, grid) == pytest.approx(spent, rel=1e-5)
    assert sketch_delta(canonical, spent, grid) == pytest.approx(1e-5, rel=1e-4)


def test_rounding_noise_of_the_transform_stays_within_its_slack() -> None:
    """A Gaussian passed through the sampled path (as the limit of q -> 1) has an exact curve to compare with."""
    for sigma, steps in ((30.0, 1_000), (100.0, 10_000)):
        nearly = (SampledGaussian(1.0 - 1e-15, sigma, steps),)
        for delta in (pld.least_delta(nearly), 1e-10, 1e-8):
            exact = exact_gaussian_epsilon(math.sqrt(steps) / sigma, delta)
            for grid in (1e-3, 1e-4, 5e-5):
                assert pld.pld_epsilon_on_grid(nearly, delta, grid) >= exact


def test_an_epsilon_beyond_all_use_is_still_a_bound() -> None:
    loud = [SampledGaussian(0.9, 0.7, 2000)]
    assert epsilon(loud, 1e-5) == epsilon(loud, 1e-5, "rdp") > 1000
    exact = exact_gaussian_epsilon(20.0, 1e-5)
    assert exact <= epsilon([SampledGaussian(1.0, 0.05, 1)], 1e-5) <= 1.01 * exact


def test_a_delta_below_double_precision_is_refused() -> None:
    many = [SampledGaussian(0.1, 5.0, 10_000)]
    with pytest.raises(ValueError, match=r"delta=1e-12: must be >= 1.1e-10.*rdp"):
        epsilon(many, 1e-12)
    assert epsilon(many, 1e-12, "rdp") > epsilon(many, 1e-9, "rdp")


# Curves


def test_curves_agree_with_single_questions() -> None:
    event = SampledGaussian(0.1, 2.0, 1)
    earlier = [SampledGaussian(0.2, 3.0, 10)]
    over_steps = epsilon_over_steps(event, [0, 10, 100], 1e-5, before=earlier)
    assert over_steps[0] == epsilon(earlier, 1e-5)
    assert over_steps[2] == epsilon([event.repeated(100), *earlier], 1e-5)
    assert list(over_steps) == sorted(over_steps)
    curve = epsilon_curve([event.repeated(100)], [1e-4, 1e-6])
    assert curve == ((1e-4, epsilon([event.repeated(100)], 1e-4)), (1e-6, epsilon([event.repeated(100)], 1e-6)))


def test_a_patient_at_two_hospitals_pays_for_both_but_less_than_twice() -> None:
    north, south = SampledGaussian(0.1, 2.0, 200), SampledGaussian(0.3, 5.0, 200)
    alone = [epsilon([each], 1e-5) for each in (north, south)]
    assert max(alone) < epsilon(compose([north], [south]), 1e-5) < sum(alone)


# Imports


def test_heavy_libraries_wait_until_they_are_needed() -> None:
    program = (
        "import sys, privfm.dp.accounting, privfm.dp.calibration, privfm.dp.ledger, privfm.dp.statement\n"
        "print([m for m in ('torch', 'opacus', 'dp_accounting', 'scipy') if m in sys.modules])\n"
        "privfm.dp.accounting.epsilon([privfm.dp.events.SampledGaussian(0.1, 2.0, 1)], 1e-5)\n"
        "print([m for m in ('torch', 'opacus') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
