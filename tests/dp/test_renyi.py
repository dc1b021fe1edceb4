"""Renyi divergences: against numerical integration, and at every order that another library gives up on."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from privfm.dp import renyi
from privfm.dp.events import SampledGaussian
from privfm.dp.renyi import ORDERS, composed_rdp, delta_from_rdp, epsilon_from_rdp, rdp_of_step

rates = st.floats(1e-4, 0.999)
noises = st.floats(0.3, 200.0)


def integrated(q: float, sigma: float, order: float) -> float:
    """The definition, integrated: E over N(0, sigma^2) of ratio^order - 1 - order (ratio - 1)."""

    def integrand(x: float) -> float:
        ratio_less_1 = q * math.expm1((2 * x - 1) / (2 * sigma**2))
        density = math.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
        return density * (math.expm1(order * math.log1p(ratio_less_1)) - order * ratio_less_1)

    pieces = np.linspace(-12 * sigma, order + 12 * sigma, 40)
    total = sum(quad(integrand, a, b, epsabs=0, epsrel=1e-10)[0] for a, b in itertools.pairwise(pieces))
    return math.log1p(total) / (order - 1)


@pytest.mark.parametrize("order", [1.02, 1.5, 2.35, 4.0, 7.0])
@pytest.mark.parametrize(("q", "sigma"), [(0.5, 10.0), (0.01, 0.6), (0.2, 1.0), (0.9, 3.0), (0.001, 0.5)])
def test_divergences_are_the_integral(q: float, sigma: float, order: float) -> None:
    assert rdp_of_step(q, sigma, order) == pytest.approx(integrated(q, sigma, order), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(q=rates, sigma=noises, order=st.integers(2, 40).map(float))
def test_the_two_methods_meet_at_whole_orders(q: float, sigma: float, order: float) -> None:
    by_sum = renyi._log_moment_integer(q, sigma, order)
    by_trapezoid = renyi._log_moment_fractional(q, sigma, order)
    assert by_trapezoid == pytest.approx(by_sum, rel=1e-6, abs=1e-13)


@settings(max_examples=50, deadline=None)
@given(q=rates, sigma=noises)
def test_divergences_grow_with_the_order_and_stay_below_the_unsampled_one(q: float, sigma: float) -> None:
    orders = (1.05, 1.5, 2.0, 3.3, 8.0, 64.0, 256.0)
    found = [rdp_of_step(q, sigma, order) for order in orders]
    assert all(low <= high * (1 + 1e-9) + 1e-15 for low, high in itertools.pairwise(found))
    assert all(f <= rdp_of_step(1.0, sigma, o) * (1 + 1e-9) for f, o in zip(found, orders, strict=True))


def test_no_order_is_dropped_where_a_series_does_not_converge() -> None:
    """dp-accounting's series gives infinity at q = 0.5 for these orders, and leaves them out of the minimum."""
    from absl import logging
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    logging.set_verbosity(logging.ERROR)
    for sigma in (1.0, 10.0):
        theirs = RdpAccountant(orders=[1.02, 1.5])
        theirs.compose(_poisson_gaussian(0.5, sigma))
        assert not np.all(np.isfinite(theirs._rdp))
        assert np.all(np.isfinite(composed_rdp([SampledGaussian(0.5, sigma, 1)], ORDERS)))


@pytest.mark.parametrize(("q", "sigma"), [(0.04, 1.5), (0.01, 0.8), (0.3, 4.0)])
def test_whole_orders_are_dp_accountings(q: float, sigma: float) -> None:
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    whole = [order for order in ORDERS if order.is_integer() and order <= 256]
    theirs = RdpAccountant(orders=whole)
    theirs.compose(_poisson_gaussian(q, sigma), 7)
    assert composed_rdp([SampledGaussian(q, sigma, 7)], whole) == pytest.approx(theirs._rdp, rel=1e-7)


def _poisson_gaussian(q: float, sigma: float) -> object:
    from dp_accounting import dp_event

    return dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(sigma))


@given(
    order=st.floats(1.05, 200.0),
    rdp=st.floats(1e-6, 20.0),
    delta=st.floats(1e-10, 0.1),
)
def test_the_two_conversions_undo_each_other(order: float, rdp: float, delta: float) -> None:
    spent = epsilon_from_rdp(order, rdp, delta)
    if spent > 0.0:
        assert delta_from_rdp(order, rdp, spent) == pytest.approx(delta, rel=1e-6)


def test_an_order_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"order=1\.0"):
        rdp_of_step(0.1, 1.0, 1.0)
