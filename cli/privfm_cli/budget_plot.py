"""Curves of epsilon, drawn into a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privfm.errors import InputError

if TYPE_CHECKING:
    from privfm.dp.outlook import Outlook

__all__ = ["draw"]

GAP = 0.06
"""Share of the axis that a line of text takes: what lies nearer together shares one."""

Curve = tuple[list[float], list[float]]
"""Rounds (or steps), and epsilon after each."""

COLOURS = ("#0b5fa5", "#c8501e", "#2f7d4f", "#7a4fa3", "#a3332f", "#4d7f99", "#8a6d1a", "#5c5c5c")
GREY = "#8c939c"
INK = "#5b626b"


def draw(outlooks: Sequence[Outlook], path: Path, *, local_steps: int | None, caps: Mapping[str, float]) -> None:
    """Draw epsilon over rounds (or steps) of every hospital, with what their plan and their lifetime caps allow.

    Args:
        caps: epsilon of lifetime caps, of hospitals that have one.

    Raises:
        InputError: the folder is not there.
    """
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: no folder {path.parent}; make it first")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    curves = {each.question.id: _curve(each, local_steps or 1) for each in outlooks}
    last = max(x[-1] for x, _ in curves.values())
    allowed = {each.question.epsilon for each in outlooks if each.question.epsilon is not None}
    top = 1.08 * max(*(y[-1] for _, y in curves.values()), *allowed, *caps.values(), 0.0)
    _draw_curves(axes, curves, top)
    _draw_limits(axes, "allowed", allowed, (4, 3), 0.0, top)
    _draw_limits(axes, "lifetime cap", set(caps.values()), (1, 2), 0.3 * last, top)
    axes.set_xlabel("steps" if local_steps is None else "rounds, retries included")
    axes.set_ylabel(f"epsilon at delta {outlooks[0].question.delta:g}")
    axes.set_xlim(0, last)
    axes.set_ylim(0, top)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=160)


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


def _draw_curves(axes: Any, curves: Mapping[str, Curve], top: float) -> None:
    """Draw every curve, those that end together in one colour and under one label."""
    ends = {name: y[-1] for name, (_, y) in curves.items()}
    for place, group in enumerate(together(ends, GAP * top)):
        colour = COLOURS[place % len(COLOURS)]
        for name in group:
            axes.plot(*curves[name], color=colour, linewidth=1.8 if len(group) == 1 else 1.2, zorder=3)
        x, _ = curves[group[0]]
        _write(
            axes, _label([(name, ends[name]) for name in group], len(curves)), (x[-1], ends[group[0]]), (6, 0), colour
        )


def _label(group: Sequence[tuple[str, float]], of: int) -> str:
    """Return what stands beside curves that end together.

    Example:
        >>> _label([("a", 7.97), ("b", 7.98), ("c", 7.99)], 4), _label([("a", 2.0)], 4)
        ('3 hospitals: 7.97 to 7.99', 'a: 2.00')
    """
    lowest, highest = f"{group[0][1]:.2f}", f"{group[-1][1]:.2f}"
    reached = lowest if lowest == highest else f"{lowest} to {highest}"
    if of == 1:
        return reached
    names = ", ".join(name for name, _ in group) if len(group) <= 2 else f"{len(group)} hospitals"
    return f"{names}: {reached}"


def _draw_limits(
    axes: Any, what: str, limits: AbstractSet[float], dashes: tuple[int, int], x: float, top: float
) -> None:
    """Draw a line for every limit, and write once what those near each other allow."""
    for limit in limits:
        axes.axhline(limit, color=GREY, linestyle=(0, dashes), linewidth=1)
    for group in together({f"{limit:g}": limit for limit in limits}, GAP * top):
        told = group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}"
        _write(axes, f"{what}: {told}", (x, float(group[-1])), (4, 7), INK)


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
