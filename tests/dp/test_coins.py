import numpy as np
import pytest
from scipy import stats

from privfm.dp.coins import CHUNK_PAIRS, InjectedCoins, Stream, SystemCoins


def test_a_stream_is_aes_256_in_counter_mode() -> None:
    # AES-256 of a zero block under a zero key, a known answer of NIST's CAVP.
    assert Stream(bytes(32)).read(16).hex() == "dc95c078a2408989ad48a21492842087"


def test_reading_in_parts_gives_the_same_bytes() -> None:
    whole, parts = Stream(bytes(32)), Stream(bytes(32))
    assert whole.read(100) == parts.read(33) + parts.read(67)


def test_words_are_the_streams_bytes() -> None:
    count = CHUNK_PAIRS + 3
    assert Stream(bytes(32)).words(count).tobytes() == Stream(bytes(32)).read(8 * count)
    assert Stream(bytes(32)).words(0).size == Stream(bytes(32)).normal(0).size == 0


def test_both_halves_of_every_chunk_are_filled() -> None:
    values = Stream(b"c" * 32).normal(2 * CHUNK_PAIRS + 5)
    assert len(np.unique(values)) == len(values)
    assert stats.kstest(values[-5:], "norm").pvalue > 1e-3


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        Stream(bytes(31))


def test_normals_pass_a_kolmogorov_smirnov_test() -> None:
    values = Stream(b"k" * 32).normal(200_001)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(values[:100_000], values[100_001:])[0, 1]) < 0.02


def test_normals_have_heavy_enough_tails() -> None:
    values = np.abs(Stream(b"t" * 32).normal(4_000_000))
    expected = 4_000_000 * 2 * stats.norm.sf(4.0)
    assert abs((values > 4.0).sum() - expected) < 5 * np.sqrt(expected)


def test_uniforms_stay_below_one() -> None:
    values = Stream(b"u" * 32).uniform(100_000)
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_system_streams_of_one_label_differ() -> None:
    coins = SystemCoins()
    assert coins.private
    assert coins.stream("noise", 1).read(32) != coins.stream("noise", 1).read(32)


def test_injected_streams_repeat_and_differ_by_label() -> None:
    first, again = InjectedCoins(b"seed"), InjectedCoins(b"seed")
    assert not first.private
    assert first.stream("noise", 1).read(32) == again.stream("noise", 1).read(32)
    assert first.stream("noise", 1).read(32) != first.stream("noise", 2).read(32)
    assert first.stream("noise", 1).read(32) != first.stream("noise", "1").read(32)


def test_keys_are_not_shown() -> None:
    assert "secret" in repr(Stream(b"\x07" * 32))
    assert "seed" not in repr(InjectedCoins(b"seed"))


def test_a_sum_of_draws_is_as_normal_and_no_multiple_of_one_draw() -> None:
    single, summed = Stream(b"s" * 32).normal(40_000), Stream(b"s" * 32).normal(40_000, terms=4)
    assert stats.kstest(summed, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(single, summed)[0, 1] - 0.5) < 0.02  # the first of four
    with pytest.raises(ValueError, match="terms=0"):
        Stream(bytes(32)).normal(1, terms=0)
