"""Geometry of the report's charts. Templates turn it into inline SVG, so that colours follow the page's theme."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "NARROW",
    "TOP",
    "WIDE",
    "Bar",
    "BarChart",
    "Line",
    "LineChart",
    "Reference",
    "Tick",
    "bar_chart",
    "line_chart",
    "ticks",
]

WIDE, NARROW = 960, 470
"""Widths that show at their own size on a page of the report, so that words in charts are as large as elsewhere."""

ROUND = "round"
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 14, 40
DIGIT, DIGITS_THAT_FIT = 8, 4
LINE_HEIGHT = 260
LABEL_HEIGHT = 16
ROW_HEIGHT = 38
LABELS_LEFT = 130
WIDEST_STROKE, THINNEST_STROKE = 7.0, 2.0


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in SVG units."""

    at: float
    label: str


@dataclass(frozen=True)
class Reference:
    """A dashed line that curves are read against.

    Args:
        name: what it is.
        value: where it lies.
        limit: whether crossing it would break a promise.
    """

    name: str
    value: float
    limit: bool = False


@dataclass(frozen=True)
class Line:
    """A curve: its `points` attribute, and over rounds dots with the words that show when one points at them."""

    name: str
    points: str
    dots: tuple[tuple[float, float, str], ...]
    stroke: float


@dataclass(frozen=True)
class LineChart:
    """One or more curves over rounds."""

    title: str
    summary: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    reference: Reference | None
    reference_at: float
    width: int
    left: int
    x_label: str
    y_label: str
    band: str
    height: int = LINE_HEIGHT
    bottom: int = LINE_HEIGHT - BOTTOM

    @property
    def right(self) -> int:
        return self.width - RIGHT

    @property
    def reference_label_at(self) -> float:
        """Above the dashed line, unless that is at the top."""
        return self.reference_at + 15 if self.reference_at < TOP + 20 else self.reference_at - 7


@dataclass(frozen=True)
class Bar:
    """A value with its interval, in SVG units."""

    name: str
    label: str
    top: float
    middle: float
    end: float
    low: float
    high: float
    main: bool


@dataclass(frozen=True)
class BarChart:
    """Values in rows, with intervals."""

    title: str
    summary: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...]
    height: int
    width: int = WIDE
    left: int = LABELS_LEFT
    row: int = ROW_HEIGHT


def ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Return about `count` round numbers that cover [low, high].

    Example:
        >>> ticks(0.0, 8.0)
        (0.0, 2.0, 4.0, 6.0, 8.0)
        >>> ticks(0.93, 1.08)
        (0.9, 0.95, 1.0, 1.05, 1.1)
    """
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if span / (factor * power) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(i * step, 12) for i in range(first, max(last, first + 1) + 1))


def line_chart(
    curves: Mapping[str, Sequence[tuple[int | float, float]]],
    *,
    title: str,
    summary: str,
    x_label: str = ROUND,
    y_label: str = "",
    band: Sequence[tuple[float, float, float]] = (),
    reference: Reference | None = None,
    from_zero: bool = False,
    width: int = NARROW,
) -> LineChart:
    """Return the chart of `curves`, each a list of (round, value), or of points over another axis.

    Curves that lie on each other stay visible: the first is drawn widest, the last thinnest.

    Args:
        curves: at least one, with at least one point.
        title: for whoever cannot see it, with `summary`.
        summary: what the curves do, in a sentence.
        x_label: what the axis across is; rounds are whole.
        y_label: what the axis upwards is, where the title does not say so.
        band: of the first curve, shaded: (x, low, high).
        reference: drawn as a dashed line.
        from_zero: whether the axis of values starts at 0.
        width: of the drawing, in pixels.
    """
    rounds = [float(x) for curve in curves.values() for x, _ in curve]
    values = [y for curve in curves.values() for _, y in curve] + ([] if reference is None else [reference.value])
    x_values: Sequence[float] = ticks(min(rounds), max(rounds), 8)
    if x_label == ROUND:
        x_values = _whole(x_values)
    y_values = ticks(0.0 if from_zero else min(values), max(values))
    left = LEFT + DIGIT * max(0, max(len(f"{y:g}") for y in y_values) - DIGITS_THAT_FIT)
    left += LABEL_HEIGHT if y_label else 0
    x_axis = _Axis(min(rounds), max(rounds), float(left), float(width - RIGHT))
    y_axis = _Axis(y_values[0], y_values[-1], float(LINE_HEIGHT - BOTTOM), float(TOP))
    return LineChart(
        title=title,
        summary=summary,
        x_ticks=tuple(x_axis.tick(x) for x in x_values if min(rounds) <= x <= max(rounds)),
        y_ticks=tuple(y_axis.tick(y) for y in y_values),
        lines=tuple(
            _line(name, curve, x_axis, y_axis, stroke, x_label)
            for (name, curve), stroke in zip(curves.items(), _strokes(len(curves)), strict=True)
        ),
        reference=reference,
        reference_at=0.0 if reference is None else y_axis.at(reference.value),
        width=width,
        left=left,
        x_label=x_label,
        y_label=y_label,
        band=" ".join(f"{x_axis.at(x)},{y_axis.at(y)}" for x, y in _around(band)),
    )


def _around(band: Sequence[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """The outline of a band: along its lower side, and back along its upper one."""
    return [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]


def bar_chart(
    values: Mapping[str, tuple[float, float, float]], *, title: str, x_label: str, summary: str, main: str
) -> BarChart:
    """Return a row for each name with its (value, low, high), in [0, 1]; the row called `main` stands out."""
    x_values = ticks(0.0, max(high for _, _, high in values.values()))
    axis = _Axis(0.0, x_values[-1], float(LABELS_LEFT), float(WIDE - RIGHT - 24))
    bars = []
    for index, (name, (value, low, high)) in enumerate(values.items()):
        top = TOP + index * ROW_HEIGHT
        bars.append(
            Bar(
                name=name,
                label=f"{value:.3f}",
                top=top + 6.0,
                middle=top + ROW_HEIGHT / 2,
                end=axis.at(value),
                low=axis.at(low),
                high=axis.at(high),
                main=name == main,
            )
        )
    height = TOP + len(values) * ROW_HEIGHT + BOTTOM
    return BarChart(title, summary, x_label, tuple(axis.tick(x) for x in x_values), tuple(bars), height)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    def tick(self, value: float) -> Tick:
        return Tick(self.at(value), f"{value:g}")


def _line(
    name: str, curve: Sequence[tuple[int | float, float]], x_axis: _Axis, y_axis: _Axis, stroke: float, x_label: str
) -> Line:
    dots = tuple((x_axis.at(float(x)), y_axis.at(y), f"{name}, {x_label} {x:.4g}: {y:.4g}") for x, y in curve)
    points = " ".join(f"{x},{y}" for x, y, _ in dots)
    return Line(name, points, dots if x_label == ROUND else (), stroke)


def _strokes(count: int) -> list[float]:
    if count == 1:
        return [THINNEST_STROKE]
    step = (WIDEST_STROKE - THINNEST_STROKE) / (count - 1)
    return [round(WIDEST_STROKE - i * step, 2) for i in range(count)]


def _whole(values: Sequence[float]) -> list[float]:
    return [value for value in values if value == int(value)]
