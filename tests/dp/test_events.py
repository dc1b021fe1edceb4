"""Events: bounds, composition and a codec that guesses nothing."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfm.dp.events import SampledGaussian, compose, events_from_json, events_to_json, total_steps

events = st.builds(
    SampledGaussian,
    sample_rate=st.floats(1e-6, 1.0),
    noise_multiplier=st.floats(0.1, 100.0),
    steps=st.integers(0, 10**6),
)


@pytest.mark.parametrize(
    ("sample_rate", "noise_multiplier", "steps", "named"),
    [
        (0.0, 1.0, 1, "sample_rate=0.0"),
        (-0.1, 1.0, 1, "sample_rate=-0.1"),
        (1.0001, 1.0, 1, "sample_rate=1.0001"),
        (math.nan, 1.0, 1, "sample_rate=nan"),
        (0.1, 0.0, 1, "noise_multiplier=0.0"),
        (0.1, -1.0, 1, "noise_multiplier=-1.0"),
        (0.1, math.inf, 1, "noise_multiplier=inf"),
        (0.1, math.nan, 1, "noise_multiplier=nan"),
        (0.1, 1.0, -1, "steps=-1"),
    ],
)
def test_a_value_out_of_bounds_is_named(sample_rate: float, noise_multiplier: float, steps: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SampledGaussian(sample_rate, noise_multiplier, steps)


@given(st.lists(events, max_size=6))
def test_json_gives_back_what_it_was_given(listed: list[SampledGaussian]) -> None:
    assert events_from_json(json.dumps(events_to_json(listed))) == tuple(listed)


@given(st.lists(st.lists(events, max_size=4), max_size=3), st.randoms())
def test_composition_keeps_every_step_and_forgets_order_and_grouping(groups, random) -> None:  # type: ignore[no-untyped-def]
    flat = [event for group in groups for event in group]
    random.shuffle(flat)
    assert compose(*groups) == compose(flat)
    assert total_steps(compose(*groups)) == total_steps(flat)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mechanism": "laplace"}, "unknown"),
        ({"steps": 1.5}, "integer"),
        ({"steps": True}, "integer"),
        ({"sample_rate": "0.1"}, "real number"),
        ({"sample_rate": 2.0}, "sample_rate=2.0"),
        ({"noise_multiplier": None}, "real number"),
        ({"unit": "patient"}, "unknown keys"),
    ],
)
def test_an_event_that_is_not_understood_is_refused_not_guessed(change: dict[str, object], complaint: str) -> None:
    good = events_to_json([SampledGaussian(0.1, 2.0, 10)])[0]
    with pytest.raises(ValueError, match=r"events\[0\].*" + complaint):
        events_from_json([good | change])


@pytest.mark.parametrize("missing", ["mechanism", "sample_rate", "noise_multiplier", "steps"])
def test_a_missing_key_is_refused(missing: str) -> None:
    event = events_to_json([SampledGaussian(0.1, 2.0, 10)])[0]
    del event[missing]
    with pytest.raises(ValueError, match=r"missing or unknown|unknown"):
        events_from_json([event])


@pytest.mark.parametrize("data", [{}, None, [[]], ["x"], 3])
def test_anything_but_a_list_of_objects_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        events_from_json(data)
