"""Clamping and stochastic rounding: never beyond the levels, unbiased, repeatable from the entropy alone."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rounds import entropy

from privfm.secagg import VectorSpec, dequantise, quantise
from privfm.secagg.chunks import CHUNK
from privfm.secagg.masks import keystream
from privfm.secagg.quantisation import FixedPoint

floats = st.floats(width=32, allow_nan=False)


def naive(values: list[float], spec: VectorSpec, secret: bytes) -> list[int]:
    """The definition, entry by entry."""
    coins = keystream(secret, 0).update(bytes(len(values) + 8))
    fixed = FixedPoint.of(spec)
    levels = []
    for index, value in enumerate(values):
        u = Fraction(coins[index] >> (8 - fixed.bits), 2**fixed.bits)
        clamped = np.float32(min(max(value, -float(fixed.bound)), float(fixed.bound)))
        levels.append(floor(Fraction(round(float(clamped * fixed.factor)), 2**fixed.bits) + u))
    return levels


@given(st.lists(floats, min_size=1, max_size=20), st.sampled_from([0.25, 1.0, 8.0]), st.sampled_from([16, 24, 32]))
def test_agrees_with_the_definition(values: list[float], clip: float, ring_bits: int) -> None:
    spec = VectorSpec.fit("v", len(values), clip, clients=5, ring_bits=ring_bits)
    secret = entropy("coins")
    assert quantise(np.array(values, np.float32), spec, secret).tolist() == naive(values, spec, secret)


@given(st.floats(1e-20, 1e20), st.integers(1, 2**31 - 1), st.booleans())
@example(49.966807219497916, 551117881, False)  # where bound * factor, rounded, would go beyond
def test_no_value_goes_beyond_the_levels(clip: float, levels: int, negative: bool) -> None:
    spec = VectorSpec("v", 4, clip, levels, ring_bits=32)
    top = np.float32(np.inf) * (-1 if negative else 1)
    values = np.array([top, -top, np.float32(clip), np.float32(-clip)], np.float32)
    result = quantise(values, spec, entropy(clip, levels)).astype(np.int64)
    assert np.abs(result).max() <= levels


def test_rounding_is_unbiased() -> None:
    spec = VectorSpec("v", 200_000, 1.0, levels=1000)
    for value in (0.3e-3, -0.3e-3, 0.9e-3, 123.25e-3, -0.99975):
        levels = quantise(np.full(spec.length, value, np.float32), spec, entropy(value))
        exact = float(np.float32(value)) * 1000
        assert set(np.unique(levels)) <= {int(np.floor(exact)), int(np.floor(exact)) + 1}
        fraction = exact - np.floor(exact)
        error = 5 * np.sqrt(fraction * (1 - fraction) / spec.length) + 2.0**-16
        assert abs(levels.mean() - exact) < error


def test_whole_levels_are_kept() -> None:
    spec = VectorSpec("v", 2001, 1000.0, levels=1000)
    values = np.arange(-1000, 1001, dtype=np.float32)
    assert quantise(values, spec, entropy("x")).tolist() == values.tolist()


@pytest.mark.parametrize("length", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_chunks_and_threads_change_nothing(length: int) -> None:
    spec = VectorSpec.fit("v", length, 1.0, clients=3)
    values = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    results = [quantise(values, spec, entropy("t"), threads=threads) for threads in (1, 2, 3)]
    assert all(np.array_equal(result, results[0]) for result in results)
    assert results[0].tolist() == naive(values.tolist(), spec, entropy("t"))


def test_levels_can_take_the_place_of_the_values() -> None:
    spec = VectorSpec.fit("v", CHUNK + 9, 1.0, clients=3)
    values = np.random.default_rng(1).standard_normal(spec.length).astype(np.float32)
    expected = quantise(values, spec, entropy("t"))
    found = quantise(values, spec, entropy("t"), out=values.view(np.int32))
    assert np.shares_memory(found, values)
    assert np.array_equal(found, expected)


def test_entropy_matters() -> None:
    spec = VectorSpec("v", 100, 1.0, levels=3)
    values = np.full(100, 0.5, np.float32)
    assert not np.array_equal(quantise(values, spec, entropy(1)), quantise(values, spec, entropy(2)))


@pytest.mark.parametrize("bad", [float("nan"), -float("nan")])
@pytest.mark.parametrize("place", [0, 1, 9])
def test_not_a_number_is_refused(bad: float, place: int) -> None:
    values = np.zeros(10, np.float32)
    values[place] = bad
    with pytest.raises(ValueError, match="'v' holds a value that is not a number"):
        quantise(values, VectorSpec("v", 10, 1.0, levels=3), entropy("x"))


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values.shape=\(3,\)"):
        quantise(np.zeros(3, np.float32), VectorSpec("v", 4, 1.0, levels=3), entropy("x"))
    with pytest.raises(ValueError, match="entropy"):
        quantise(np.zeros(4, np.float32), VectorSpec("v", 4, 1.0, levels=3), b"short")


@given(st.lists(st.integers(-5000, 5000), min_size=1, max_size=9))
def test_dequantise_scales_by_the_step(totals: list[int]) -> None:
    spec = VectorSpec("v", len(totals), 0.5, levels=1000)
    expected = [np.float32(total * 0.5 / 1000) for total in totals]
    np.testing.assert_allclose(dequantise(np.array(totals, np.int32), spec), expected, rtol=1e-6)
