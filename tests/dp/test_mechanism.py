import numpy as np
import pytest
import torch
from scipy import stats

from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import InjectedCoins, Stream
from privfm.dp.mechanism import WIDEST, AdaptiveClipping, StepMechanism

MECHANISM = StepMechanism(sample_rate=0.25, nominal_units=40, clip_norm=2.0, noise_multiplier=1.5)


def test_noise_has_the_declared_scale() -> None:
    empty = ClippedSum(torch.zeros(20_000), 2.0)
    released = MECHANISM.release(empty, Stream(b"n" * 32)).numpy()
    expected = 1.5 * 2.0 / (0.25 * 40)
    statistic = float((released.astype(np.float64) ** 2).sum() / expected**2)
    assert 1e-4 < stats.chi2.cdf(statistic, df=20_000) < 1 - 1e-4


def test_the_sum_is_divided_by_the_declared_number() -> None:
    quiet = StepMechanism(0.25, 40, 2.0, 1e-12)
    released = quiet.release(ClippedSum(torch.full((3,), 5.0), 2.0), Stream(bytes(32)))
    torch.testing.assert_close(released, torch.full((3,), 0.5))


def test_noise_is_fresh() -> None:
    coins, empty = InjectedCoins(b"x"), ClippedSum(torch.zeros(100), 2.0)
    first, second = (MECHANISM.release(empty, coins.stream("noise", step)) for step in (0, 1))
    assert not torch.equal(first, second)


def test_one_patient_more_changes_neither_rate_nor_divisor() -> None:
    coins = InjectedCoins(b"d")
    few, more = MECHANISM.draw(40, coins.stream("draw")), MECHANISM.draw(41, coins.stream("draw"))
    np.testing.assert_array_equal(few, more[more < 40])
    assert MECHANISM.divisor == 10.0


def test_the_event_says_what_runs() -> None:
    event = MECHANISM.event(7)
    assert (event.sample_rate, event.noise_multiplier, event.steps) == (0.25, 1.5, 7)


def test_a_sum_clipped_to_another_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clip_norm=1\.0"):
        MECHANISM.release(ClippedSum(torch.zeros(3), 1.0), Stream(bytes(32)))


ADAPTIVE = StepMechanism(0.25, 4000, 2.0, 1.5, AdaptiveClipping(0.5, start=2.0))


@pytest.mark.parametrize("nominal_units", [8, 400, 40_000])
def test_gradient_and_count_together_are_the_mechanism_that_is_charged(nominal_units: int) -> None:
    """Scaled to noise of one, a unit moves the two by a vector as long as its gradient alone would without a count."""
    mechanism = StepMechanism(0.25, nominal_units, 2.0, 1.5, AdaptiveClipping(0.5, start=2.0))
    gradient, count = 1 / mechanism.gradient_noise_multiplier, 0.5 / mechanism.count_noise
    assert np.hypot(gradient, count) == pytest.approx(1 / 1.5, rel=1e-12)
    assert mechanism.gradient_noise_multiplier <= 1.16 * 1.5
    assert mechanism.event(3) == MECHANISM.event(3)


def test_an_adaptive_gradient_has_the_noise_that_it_needs() -> None:
    released = ADAPTIVE.release(ClippedSum(torch.zeros(20_000), 2.0), Stream(b"n" * 32)).numpy().astype(np.float64)
    statistic = float((released**2).sum() / ADAPTIVE.noise_std**2)
    assert 1e-4 < stats.chi2.cdf(statistic, df=20_000) < 1 - 1e-4
    assert ADAPTIVE.noise_std == ADAPTIVE.gradient_noise_multiplier * 2.0 / 1000


def test_the_noised_count_is_centred_with_the_declared_noise() -> None:
    coins, clipping = InjectedCoins(b"count"), AdaptiveClipping(0.5, start=2.0)
    logs = []
    for step in range(4000):
        moved = ADAPTIVE.adapted(ClippedSum(torch.zeros(1), 2.0, 1000, 700), coins.stream("count", step)).clip_norm
        logs.append(np.log(moved / 2.0) / -clipping.learning_rate)
    assert np.mean(logs) == pytest.approx(0.2, abs=0.005)
    assert np.std(logs) == pytest.approx(ADAPTIVE.count_noise / 1000, rel=0.05)


def test_one_unit_moves_the_count_by_one_half_at_most() -> None:
    def share(units: int, within: int) -> float:
        quiet = StepMechanism(0.25, 4000, 2.0, 1e-9, AdaptiveClipping(0.5, start=2.0, learning_rate=1.0))
        moved = quiet.adapted(ClippedSum(torch.zeros(1), 2.0, units, within), Stream(bytes(32))).clip_norm
        return 0.5 - float(np.log(moved / 2.0))

    noise = share(500, 250) - 0.5
    for units, within in ((501, 251), (501, 250), (499, 250), (499, 249)):
        assert abs(share(units, within) - noise - 0.5) == pytest.approx(0.5 / 1000)


def test_the_clip_norm_finds_the_quantile_and_stays_in_bounds() -> None:
    norms, coins, mechanism = np.linspace(0.0, 8.0, 1001), InjectedCoins(b"q"), ADAPTIVE
    for step in range(200):
        clipped = ClippedSum(torch.zeros(1), mechanism.clip_norm, 1001, int((norms <= mechanism.clip_norm).sum()))
        mechanism = mechanism.adapted(clipped, coins.stream("count", step))
    assert mechanism.clip_norm == pytest.approx(4.0, abs=0.5)
    for within, bound in ((0, 2.0 * WIDEST), (1000, 2.0 / WIDEST)):
        mechanism = ADAPTIVE
        for step in range(60):
            clipped = ClippedSum(torch.zeros(1), mechanism.clip_norm, 1000, within)
            mechanism = mechanism.adapted(clipped, coins.stream("bound", within, step))
        assert mechanism.clip_norm == bound


def test_a_fixed_clip_norm_counts_nothing() -> None:
    assert MECHANISM.adapted(ClippedSum(torch.zeros(3), 2.0, 10, 3), Stream(bytes(32))) is MECHANISM
    with pytest.raises(ValueError, match=r"clip_norm=1\.0"):
        ADAPTIVE.adapted(ClippedSum(torch.zeros(3), 1.0), Stream(bytes(32)))


def test_a_mean_is_noised_as_a_step_s_sum_of_sensitivity_half_the_bound() -> None:
    coins = InjectedCoins(b"mean")
    released = [MECHANISM.release_mean([0.5] * 10, 2.0, coins.stream("loss", step)) for step in range(4000)]
    assert np.mean(released) == pytest.approx(0.5, abs=0.01)
    assert np.std(released) == pytest.approx(1.5 * 1.0 / 10, rel=0.05)
    assert max(map(abs, released)) < MECHANISM.mean_reach(2.0)


@pytest.mark.parametrize("value", [-5.0, 0.0, 0.3, 2.0, 9.0, float("nan"), float("inf"), float("-inf")])
def test_one_unit_moves_a_mean_by_half_the_bound_at_most(value: float) -> None:
    def mean(values: list[float]) -> float:
        return MECHANISM.release_mean(values, 2.0, Stream(bytes(32)))

    assert abs(mean([0.5, 1.0, value]) - mean([0.5, 1.0])) <= 1.0 / 10 + 1e-12
