import numpy as np
import pytest

from privfm.dp.coins import InjectedCoins, Stream
from privfm.dp.sampling import poisson_draw


def test_the_number_drawn_is_binomial() -> None:
    coins = InjectedCoins(b"draws")
    counts = np.array([len(poisson_draw(100, 0.3, coins.stream(i))) for i in range(3000)])
    assert abs(counts.mean() - 30) < 4 * np.sqrt(21 / 3000)
    assert abs(counts.var() / 21 - 1) < 0.15


def test_units_are_drawn_independently_of_how_many_there_are() -> None:
    few = poisson_draw(50, 0.4, Stream(b"s" * 32))
    more = poisson_draw(51, 0.4, Stream(b"s" * 32))
    np.testing.assert_array_equal(few, more[more < 50])


def test_a_rate_of_one_draws_everyone_and_no_units_draw_none() -> None:
    assert len(poisson_draw(7, 1.0, Stream(bytes(32)))) == 7
    assert len(poisson_draw(0, 0.5, Stream(bytes(32)))) == 0


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="sample_rate"):
        poisson_draw(5, rate, Stream(bytes(32)))
