"""Curves of epsilon, drawn into a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from privfm.errors import InputError

if TYPE_CHECKING:
    from privfm.dp.outlook import Outlook, UnderCap

__all__ = ["draw"]

GAP = 0.06
"""Share of the axis that a line of text takes: what lies nearer together shares one."""

MOST_CURVES = 8
"""Of more hospitals than that the lowest, the median and the highest are drawn, and the range between."""

MOST_NAMES = 3
"""That stand beside curves that end together."""

Curve = tuple[list[float], list[float]]
"""Rounds (or steps), and epsilon after each."""

COLOURS = ("#0b5fa5", "#c8501e", "#2f7d4f", "#7a4fa3", "#8a6d1a", "#0f8c99", "#b5307d", "#5c5c5c")
"""Of lines one after the other; neighbours differ in dashes too, for print and for the colour-blind."""

DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 1.5), (7, 2, 1.5, 2))
GREY = "#8c939c"
INK = "#5b626b"
BAND = "#dfe6ee"

WHY_STOPPED = (
    "Cross: the lifetime cap refuses the next round; its rule (an RDP filter) is looser than the curves (PLD)."
)


@dataclass(frozen=True)
class Line:
    """A hospital's curve, and the round (or step) after which its cap refuses; None where that has room for all."""

    name: str
    points: Curve
    stop: int | None


Lines = dict[str, list[Line]]
"""Lines that look the same, by their label."""


def draw(outlooks: Sequence[Outlook], path: Path, *, local_steps: int | None, caps: Mapping[str, UnderCap]) -> None:
    """Draw epsilon over rounds (or steps) of every hospital, with what their plan and their lifetime caps allow.

    Of many hospitals the lowest, the median and the highest are drawn, and the range.

    Args:
        caps: what lifetime caps make of the outlooks, of hospitals that have one.

    Raises:
        InputError: the folder is not there.
    """
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: no folder {path.parent}; make it first")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    last = max(each.curve[-1].steps for each in outlooks) / (local_steps or 1)
    allowed = {each.question.epsilon for each in outlooks if each.question.epsilon is not None}
    kept = {each.cap for each in caps.values()}
    top = 1.08 * max(*(each.curve[-1].epsilon for each in outlooks), *allowed, *kept, 0.0)
    if len(outlooks) > MOST_CURVES:
        _draw_range(axes, outlooks, local_steps or 1)
    lines = _lines(outlooks, caps, local_steps or 1, GAP * top)
    _draw_lines(axes, lines)
    _draw_limits(axes, "allowed", allowed, (4, 3), 0.0, top)
    _draw_limits(axes, "lifetime cap", kept, (1, 2), 0.3 * last, top)
    axes.set_xlabel("steps" if local_steps is None else "rounds, retries included")
    axes.set_ylabel(f"epsilon at delta {outlooks[0].question.delta:g}")
    axes.set_xlim(0, last)
    axes.set_ylim(0, top)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    if any(line.stop is not None for group in lines.values() for line in group):
        figure.supxlabel(WHY_STOPPED, x=0.01, ha="left", fontsize=8, color=INK)
    figure.savefig(path, dpi=160)


def _lines(outlooks: Sequence[Outlook], caps: Mapping[str, UnderCap], every: int, gap: float) -> Lines:
    """Return the lines to draw; those that end together share a label."""
    shown = _named(outlooks)
    ends = {name: each.epsilon for name, each in shown.items()}
    return {
        _label([(name, ends[name]) for name in group], len(shown), len(outlooks)): [
            _line(shown[name], caps.get(shown[name].question.id), every) for name in group
        ]
        for group in together(ends, gap)
    }


def _named(outlooks: Sequence[Outlook]) -> dict[str, Outlook]:
    """Return hospitals' outlooks by name; of many the lowest, the median and the highest, said to be that."""
    if len(outlooks) <= MOST_CURVES:
        return {each.question.id: each for each in outlooks}
    ranked = sorted(outlooks, key=lambda each: each.epsilon)
    picked = {"lowest": ranked[0], "median": ranked[len(ranked) // 2], "highest": ranked[-1]}
    return {f"{place} ({each.question.id})": each for place, each in picked.items()}


def _line(outlook: Outlook, cap: UnderCap | None, every: int) -> Line:
    points = _curve(outlook, every)
    stop = None if cap is None else cap.fitting // every
    return Line(outlook.question.id, points, None if stop is None or stop > points[0][-1] else stop)


def _curve(outlook: Outlook, every: int) -> Curve:
    return [point.steps / every for point in outlook.curve], [point.epsilon for point in outlook.curve]


def together(values: Mapping[str, float], gap: float) -> list[list[str]]:
    """Return names in groups whose values lie within `gap`, the lowest first; groups begin at least that far apart.

    Example:
        >>> together({"a": 7.99, "b": 2.0, "c": 7.97}, 0.5)
        [['b'], ['c', 'a']]
    """
    groups: list[list[str]] = []
    for name in sorted(values, key=values.__getitem__):
        if groups and values[name] < values[groups[-1][0]] + gap:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _label(group: Sequence[tuple[str, float]], shown: int, of: int) -> str:
    """Return what stands beside curves that end together.

    Args:
        group: their names and ends, the lowest first.
        shown: how many curves there are.
        of: how many hospitals.

    Example:
        >>> _label([("a", 7.97), ("b", 7.98), ("c", 7.99)], 4, 4), _label([("a", 2.0)], 4, 4)
        ('a, b, c: 7.97 to 7.99', 'a: 2.00')
        >>> _label([(name, 2.0) for name in "abcde"], 6, 6), _label([(name, 2.0) for name in "abcde"], 5, 5)
        ('a, b, 3 more: 2.00', 'all 5 hospitals: 2.00')
    """
    lowest, highest = f"{group[0][1]:.2f}", f"{group[-1][1]:.2f}"
    reached = lowest if lowest == highest else f"{lowest} to {highest}"
    if of == 1:
        return reached
    if len(group) == shown:
        return f"all {of} hospitals: {reached}"
    return f"{_names([name for name, _ in group])}: {reached}"


def _names(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMES:
        names = [*names[: MOST_NAMES - 1], f"{len(names) - MOST_NAMES + 1} more"]
    return ", ".join(names)


def _draw_range(axes: Any, outlooks: Sequence[Outlook], every: int) -> None:
    rounds, _ = _curve(outlooks[0], every)
    epsilons = [_curve(each, every)[1] for each in outlooks]
    lowest, highest = zip(*((min(here), max(here)) for here in zip(*epsilons, strict=True)), strict=True)
    axes.fill_between(rounds, lowest, highest, color=BAND, linewidth=0, zorder=1)


def _draw_lines(axes: Any, lines: Lines) -> None:
    """Draw every line, those of one label alike, and where lifetime caps stop them."""
    for place, (label, group) in enumerate(lines.items()):
        colour, dashes = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
        for line in group:
            axes.plot(
                *line.points,
                color=colour,
                linestyle=(0, dashes) if dashes else "-",
                linewidth=1.8 if len(group) == 1 else 1.2,
                zorder=3,
            )
        _draw_stops(axes, group, colour)
        rounds, epsilons = group[0].points
        _write(axes, label, (rounds[-1], epsilons[-1]), (6, 0), colour)


def _draw_stops(axes: Any, group: Sequence[Line], colour: str) -> None:
    """Mark where caps stop lines, each place once, and say after how many rounds (or steps)."""
    stops: dict[tuple[int, float], list[str]] = {}
    for line in group:
        if line.stop is not None:
            stops.setdefault((line.stop, float(np.interp(line.stop, *line.points))), []).append(line.name)
    for (stop, epsilon), names in sorted(stops.items()):
        at = max(stop, group[0].points[0][0]), epsilon
        axes.plot(*at, marker="x", markersize=8, markeredgewidth=2, color=colour, zorder=5, clip_on=False)
        whose = "" if len(names) == len(group) else f"{_names(names)} "
        _write(axes, f"{whose}capped after {stop}" if stop else f"{whose}capped before the first", at, (7, -11), colour)


def _draw_limits(
    axes: Any, what: str, limits: AbstractSet[float], dashes: tuple[int, int], x: float, top: float
) -> None:
    """Draw a line for every limit, of many for the lowest and the highest; those near each other share their words."""
    told = {what: limits}
    if len(limits) > MOST_NAMES:
        told = {f"lowest {what}": {min(limits)}, f"highest {what}": {max(limits)}}
    values = {f"{words}: {limit:g}": limit for words, some in told.items() for limit in some}
    for group in together(values, GAP * top):
        for words in group:
            axes.axhline(values[words], color=GREY, linestyle=(0, dashes), linewidth=1)
        _write(axes, _from_to(what, [values[words] for words in group], group[0]), (x, values[group[-1]]), (4, 7), INK)


def _from_to(what: str, limits: Sequence[float], alone: str) -> str:
    return alone if len(limits) == 1 else f"{what}: {limits[0]:g} to {limits[-1]:g}"


def _write(axes: Any, text: str, at: tuple[float, float], offset: tuple[int, int], colour: str) -> None:
    axes.annotate(
        text,
        at,
        xytext=offset,
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=9,
        zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        annotation_clip=False,
    )
