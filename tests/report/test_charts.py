"""Charts: every point is where its value says, and nothing falls off the drawing."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfm.report.charts import NARROW, TOP, Reference, bar_chart, line_chart, ticks

VALUES = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 6))


@given(low=VALUES, span=st.floats(1e-3, 1e6), count=st.integers(2, 10))
def test_ticks_cover_the_range_evenly_and_are_few(low: float, span: float, count: int) -> None:
    high = low + span
    marks = ticks(low, high, count)
    steps = [b - a for a, b in itertools.pairwise(marks)]
    assert marks[0] <= low + 1e-6 * span
    assert marks[-1] >= high - 1e-6 * span
    assert 2 <= len(marks) <= count + 3
    assert all(math.isclose(step, steps[0], rel_tol=1e-3) for step in steps)


def test_ticks_of_a_single_value_still_make_an_axis() -> None:
    assert len(ticks(0.0, 0.0)) >= 2
    assert ticks(3.0, 3.0)[0] <= 3.0 <= ticks(3.0, 3.0)[-1]


@given(values=st.lists(VALUES, min_size=1, max_size=30))
def test_points_stay_inside_and_higher_values_lie_higher(values: list[float]) -> None:
    chart = line_chart({"a": list(enumerate(values))}, title="t", summary="s")
    heights = [y for _, y, _ in chart.lines[0].dots]
    assert all(chart.left <= x <= chart.right for x, _, _ in chart.lines[0].dots)
    assert all(TOP <= y <= chart.bottom for y in heights)
    largest, smallest = values.index(max(values)), values.index(min(values))
    assert heights[largest] <= heights[smallest]


def test_a_limit_above_every_curve_is_on_the_drawing() -> None:
    chart = line_chart(
        {"a": [(0, 0.0), (1, 1.0)]}, title="t", summary="s", reference=Reference("allowed", 8.0), from_zero=True
    )
    assert TOP <= chart.reference_at < min(y for _, y, _ in chart.lines[0].dots)
    assert chart.y_ticks[0].label == "0"


def test_curves_on_top_of_each_other_are_drawn_ever_thinner() -> None:
    same = [(0, 0.0), (1, 1.0)]
    chart = line_chart({"a": same, "b": same, "c": same}, title="t", summary="s")
    strokes = [line.stroke for line in chart.lines]
    assert strokes == sorted(strokes, reverse=True)
    assert len(set(strokes)) == 3
    assert chart.width == NARROW


def test_rounds_are_labelled_with_whole_numbers_only() -> None:
    chart = line_chart({"a": [(1, 0.0), (2, 1.0)]}, title="t", summary="s")
    assert [tick.label for tick in chart.x_ticks] == ["1", "2"]


def test_bars_end_at_their_value_within_their_interval() -> None:
    chart = bar_chart(
        {"trained": (0.6, 0.5, 0.7), "noise only": (0.3, 0.25, 0.35)},
        title="t",
        x_label="x",
        summary="s",
        main="trained",
    )
    trained, control = chart.bars
    zero, one = chart.left, chart.x_ticks[-1]
    scale = (one.at - zero) / float(one.label)
    assert trained.main
    assert not control.main
    for bar, value, low, high in ((trained, 0.6, 0.5, 0.7), (control, 0.3, 0.25, 0.35)):
        assert (bar.end, bar.low, bar.high) == pytest.approx([zero + scale * v for v in (value, low, high)], abs=0.1)
