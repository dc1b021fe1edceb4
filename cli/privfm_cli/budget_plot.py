"""Curves of epsilon, drawn into a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privfm.errors import InputError

if TYPE_CHECKING:
    from privfm.dp.outlook import Outlook

__all__ = ["draw"]

NAMED = 8
"""Curves that can each have a name beside them; of more, the highest and the lowest have."""

Curve = tuple[list[float], list[float]]
"""Rounds (or steps), and epsilon after each."""

COLOURS = ("#0b5fa5", "#c8501e", "#2f7d4f", "#7a4fa3", "#a3332f", "#4d7f99", "#8a6d1a", "#5c5c5c")
GREY = "#8c939c"


def draw(outlooks: Sequence[Outlook], path: Path, *, local_steps: int | None) -> None:
    """Draw epsilon over rounds (or steps) of every hospital, with its limit where all share one.

    Raises:
        InputError: the folder is not there.
    """
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: no folder {path.parent}; make it first")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    curves = {each.question.id: _curve(each, local_steps or 1) for each in outlooks}
    labels = _labels(curves)
    colours = dict(zip(labels, COLOURS, strict=False))
    for name, (x, y) in curves.items():
        named = name in labels
        axes.plot(x, y, color=colours.get(name, GREY), linewidth=1.8 if named else 0.8, zorder=3 if named else 2)
    _label(axes, curves, labels, colours)
    _draw_limit(axes, outlooks)
    axes.set_xlabel("steps" if local_steps is None else "rounds, retries included")
    axes.set_ylabel(f"epsilon at delta {outlooks[0].question.delta:g}")
    axes.set_xlim(0, max(x[-1] for x, _ in curves.values()))
    axes.set_ylim(0, 1.08 * max(y[-1] for _, y in curves.values()))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=160)


def _curve(outlook: Outlook, every: int) -> Curve:
    return [point.steps / every for point in outlook.curve], [point.epsilon for point in outlook.curve]


def _labels(curves: dict[str, Curve]) -> dict[str, str]:
    """Return what stands beside which curve."""
    ends = {name: y[-1] for name, (_, y) in curves.items()}
    if len(curves) == 1:
        return dict.fromkeys(ends, f"{next(iter(ends.values())):.2f}")
    if len(curves) > NAMED:
        highest, lowest = max(ends, key=ends.__getitem__), min(ends, key=ends.__getitem__)
        return {name: f"{name}, {ends[name]:.2f}" for name in (highest, lowest)}
    return {name: f"{name}, {end:.2f}" for name, end in ends.items()}


def _label(axes: Any, curves: dict[str, Curve], labels: dict[str, str], colours: dict[str, str]) -> None:
    """Write labels at the curves' ends, moved apart where they would lie on each other."""
    gap, last = 0.06 * max(y[-1] for _, y in curves.values()), -1.0
    for name in sorted(labels, key=lambda name: curves[name][1][-1]):
        x, y = curves[name]
        last = max(y[-1], last + gap)
        axes.annotate(
            labels[name],
            (x[-1], last),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colours[name],
            fontsize=9,
            annotation_clip=False,
        )


def _draw_limit(axes: Any, outlooks: Sequence[Outlook]) -> None:
    limits = {each.question.epsilon for each in outlooks}
    limit = limits.pop()
    if limits or limit is None:
        return
    axes.axhline(limit, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
    axes.annotate(
        f"allowed: {limit:g}", (0, limit), xytext=(4, 4), textcoords="offset points", color="#5b626b", fontsize=9
    )
