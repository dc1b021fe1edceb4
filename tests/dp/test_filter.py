"""The lifetime cap: its conversion is sound, its counts are exact, planner and ledger see the same number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfm.dp.accounting import epsilon
from privfm.dp.events import SampledGaussian
from privfm.dp.filter import RdpFilter
from privfm.dp.renyi import epsilon_from_rdp

caps = st.builds(RdpFilter.for_cap, st.floats(0.1, 50.0), st.sampled_from([1e-3, 1e-5, 1e-9]))
mechanisms = st.builds(SampledGaussian, st.floats(1e-3, 1.0), st.floats(0.5, 50.0), st.just(1))


@given(caps)
def test_the_budget_converts_back_to_the_cap(cap: RdpFilter) -> None:
    assert epsilon_from_rdp(cap.order, cap.budget, cap.delta) == pytest.approx(cap.epsilon, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(caps, mechanisms)
def test_what_fits_fits_and_one_step_more_never(cap: RdpFilter, event: SampledGaussian) -> None:
    fitting = cap.steps_that_fit(event)
    assert cap.admits([event.repeated(fitting)])
    assert not cap.admits([event.repeated(fitting + 1)])


@given(caps)
def test_the_line_is_drawn_at_the_cap_itself(cap: RdpFilter) -> None:
    tiny = SampledGaussian(1.0, 2000.0, 1)
    fitting = cap.steps_that_fit(tiny)
    spent = fitting * cap.order / (2 * 2000.0**2)
    assert epsilon_from_rdp(cap.order, spent, cap.delta) == pytest.approx(cap.epsilon, rel=1e-3, abs=1e-5)
    assert epsilon_from_rdp(cap.order, spent, cap.delta) <= cap.epsilon


@settings(max_examples=40, deadline=None)
@given(caps, mechanisms, st.integers(2, 7))
def test_charging_step_by_step_ends_where_the_plan_said(cap: RdpFilter, event: SampledGaussian, local: int) -> None:
    """Sums are over counts, so thousands of small charges cannot drift from the planner's one large one."""
    rounds = cap.rounds_that_fit([event.repeated(local)])
    for done in {0, 1, rounds // 2, rounds - 1, rounds, rounds + 1} - {-1}:
        ledger = [event.repeated(local)] * min(done, 200) + [event.repeated(local * max(0, done - 200))]
        assert cap.admits(ledger) == (done <= rounds)
        assert cap.rounds_that_fit([event.repeated(local)], spent=ledger) == max(0, rounds - done)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 20.0), st.floats(1e-2, 0.9), st.floats(0.8, 10.0))
def test_what_the_filter_admits_the_tight_accountant_finds_within_the_cap(
    target: float, q: float, sigma: float
) -> None:
    cap = RdpFilter.for_cap(target, 1e-5)
    fitting = cap.steps_that_fit(SampledGaussian(q, sigma, 1))
    assert epsilon([SampledGaussian(q, sigma, min(fitting, 20_000))], 1e-5) <= target


@pytest.mark.parametrize("target", [0.5, 2.0, 8.0, 30.0])
def test_the_order_leaves_nearly_as_much_room_as_any_for_gaussian_like_steps(target: float) -> None:
    for q, sigma in ((0.1, 5.0), (0.2, 4.0), (1.0, 20.0)):
        event = SampledGaussian(q, sigma, 1)
        chosen = RdpFilter.for_cap(target, 1e-5).steps_that_fit(event)
        orders = [1.0 + 2.0 ** (k / 4) for k in range(-8, 25)]
        usable = [o for o in orders if target - math.log1p(-1 / o) + (math.log(1e-5) + math.log(o)) / (o - 1) > 0]
        best = max(RdpFilter(target, 1e-5, order).steps_that_fit(event) for order in usable)
        assert chosen >= 0.9 * best


@given(caps)
def test_json_gives_back_the_same_filter(cap: RdpFilter) -> None:
    assert RdpFilter.from_json(cap.to_json()) == cap


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((0.0, 1e-5, 8.0), "epsilon=0.0"),
        ((8.0, 0.0, 8.0), "delta=0.0"),
        ((8.0, 1e-5, 1.0), "order=1.0"),
        ((8.0, 1e-5, math.inf), "order=inf"),
        ((0.1, 1e-5, 2.0), "order=2.0: nothing fits"),
    ],
)
def test_a_filter_that_cannot_be_is_named(arguments: tuple[float, float, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RdpFilter(*arguments)


@pytest.mark.parametrize("data", [None, {}, {"epsilon": 8.0, "delta": 1e-5}, [8.0, 1e-5, 4.0]])
def test_data_that_is_no_filter_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="exactly epsilon, delta and order"):
        RdpFilter.from_json(data)


def test_rounds_that_release_nothing_have_no_number() -> None:
    with pytest.raises(ValueError, match="releases nothing"):
        RdpFilter.for_cap(8.0, 1e-5).rounds_that_fit([])
