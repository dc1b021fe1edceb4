import numpy as np
import pytest
import torch
from scipy import stats

from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import InjectedCoins, Stream
from privfm.dp.mechanism import StepMechanism

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
