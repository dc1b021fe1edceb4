"""What leaves beside gradients, where a plan lets it: the shown loss, and the count behind an adaptive clip norm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import InjectedCoins, Stream, SystemCoins
from privfm_attacks.bench import INPUTS, OUTPUTS, Bench
from privfm_attacks.thresholds import ALPHA, ROUNDING, variance
from privfm_attacks.verdicts import Finding

__all__ = ["adaptive_clip_norm", "shown_loss"]

COINS = 2_000
"""Releases whose noise is looked at together."""

ROUNDS = 300
"""The same of whole rounds, which take longer."""


def shown_loss(bench: Bench) -> Iterator[Finding]:
    """A mean loss has the declared noise, and one unit moves it by half of the bound at most, whatever its loss is."""
    bound = bench.plan.shown_loss_bound
    if bound is None:
        return
    reach, system = bound / 2 / bench.expected_units, SystemCoins()
    std = np.array([bench.noise_multiplier * reach])
    for units in (0, 4 * math.ceil(bench.expected_units)):
        losses = [bound / 2] * units
        means = [bench.mechanism.release_mean(losses, bound, system.stream("loss noise")) for _ in range(COINS)]
        yield variance(f"loss noise, {units} units", np.array([means]) - bound / 2, std)
    if bench.plan.privacy.dp:  # else noise is lost in single precision
        yield variance("loss noise, rounds", np.array([_shown(bench)]) - bound / 2, std)
    others = [0.1 * bound, 0.9 * bound, 3 * bound]
    moved = max(_mean_moved(bench, others, loss, bound) for loss in (1e9, -1e9, math.inf, -math.inf, math.nan, bound))
    detail = f"one unit moves the mean by {moved / reach:.4f} of the declared most"
    yield Finding("loss sensitivity", moved <= reach * (1 + ROUNDING), detail)
    moved = _round_moved(bench)
    detail = f"one unit moves a round's shown loss by {moved / reach:.4f} of the declared most"
    yield Finding("loss sensitivity, rounds", moved <= reach * (1 + ROUNDING) + _rounding(bench, bound), detail)


def _rounding(bench: Bench, bound: float) -> float:
    """Of a shown loss, which leaves in single precision."""
    return 2.0**-20 * bound * (1 + bench.noise_multiplier / bench.expected_units)


def _shown(bench: Bench) -> list[float]:
    """What many rounds show of nobody."""
    bench = bench.with_steps(1)
    releases, start = bench.releases(torch.zeros(1, OUTPUTS), SystemCoins(), units=0), torch.zeros(OUTPUTS * INPUTS)
    return [float(releases.of_round(start, number, 0)[1]) for number in range(1, ROUNDS + 1)]


def _mean_moved(bench: Bench, others: Sequence[float], loss: float, bound: float) -> float:
    def mean(losses: Sequence[float]) -> float:
        return bench.mechanism.release_mean(losses, bound, InjectedCoins(b"loss").stream("loss noise"))

    found = abs(mean([*others, loss]) - mean(others))
    return found if math.isfinite(found) else math.inf


def _round_moved(bench: Bench) -> float:
    """By how much a unit with an enormous loss moves what a round shows, at the most of some draws of it."""
    bench, found = bench.with_steps(1), []
    rows, start = torch.full((5, OUTPUTS), 1e6), torch.full((OUTPUTS * INPUTS,), 0.01)
    for label in _drawing(bench, unit=4):
        with_it, without = (_loss(bench, rows, label, units, start) for units in (5, 4))
        found.append(abs(with_it - without))
    return max(found)


def _drawing(bench: Bench, unit: int) -> list[bytes]:
    """Labels whose coins draw this unit for the shown loss."""
    labels = [f"loss {trial}".encode() for trial in range(math.ceil(40 / bench.rate))]
    streams = ((label, InjectedCoins(label).stream("loss draw", 1, 0)) for label in labels)
    return [label for label, stream in streams if unit in bench.mechanism.draw(unit + 1, stream)][:3]


def _loss(bench: Bench, rows: Tensor, label: bytes, units: int, start: Tensor) -> float:
    releases = bench.releases(rows, InjectedCoins(label), units=units)
    return float(releases.of_round(start, 1, 0)[1])


def adaptive_clip_norm(bench: Bench) -> Iterator[Finding]:
    """A clip norm follows a count with the declared noise, and one unit moves it as far as half a unit may."""
    if bench.mechanism.adaptive is None:
        return
    std, system = bench.count_noise / bench.expected_units, SystemCoins()
    for units in (0, 8 * math.ceil(bench.expected_units)):
        shares = [_share(bench, units, units // 2, system.stream("count")) for _ in range(COINS)]
        yield _noise_of_share(f"count noise, {units} units", np.array(shares), std)
    reach, moves = 0.5 / bench.expected_units, [(0, 0), (1, 0), (1, 1), (5, 5), (20, 10), (20, 20)]
    label = _inner_label(bench)
    moved = max(_share_moved(bench, label, units, within, more) for units, within in moves for more in (0, 1))
    detail = f"one unit moves the share by {moved / reach:.4f} of the declared most"
    yield Finding("count sensitivity", moved <= reach * (1 + ROUNDING) + 1e-9, detail)


def _share(bench: Bench, units: int, within: int, stream: Stream) -> float:
    """The noised share of units within the clip norm, by how far the clip norm moved; from 0 to 1."""
    adaptive, clip_norm = bench.mechanism.adaptive, bench.mechanism.clip_norm
    if adaptive is None:
        raise ValueError("the clip norm does not adapt")
    moved = bench.mechanism.adapted(ClippedSum(torch.zeros(1), clip_norm, units, within), stream).clip_norm
    return adaptive.quantile - math.log(moved / clip_norm) / adaptive.learning_rate


def _noise_of_share(name: str, shares: np.ndarray, std: float) -> Finding:
    """Binomial tests, for shares end at 0 and 1: as many near a half, and above it, as noise of this size leaves."""
    width = min(0.4, std)
    near, above = int((np.abs(shares - 0.5) < width).sum()), int((shares > 0.5).sum())
    expected = float(stats.norm.cdf(width / std) - stats.norm.cdf(-width / std))
    p_values = [stats.binomtest(near, len(shares), expected).pvalue, stats.binomtest(above, len(shares), 0.5).pvalue]
    p = min(1.0, 2 * float(min(p_values)))
    detail = f"{near / len(shares):.3f} of shares are near a half, {expected:.3f} expected (p = {p:.2g})"
    return Finding(name, p > ALPHA, detail)


def _share_moved(bench: Bench, label: bytes, units: int, within: int, more: int) -> float:
    """By how much one unit more, within the clip norm or not, moves the share."""
    with_it, without = (
        _share(bench, *counts, InjectedCoins(label).stream("count"))
        for counts in ((units + 1, within + more), (units, within))
    )
    return abs(with_it - without)


def _inner_label(bench: Bench) -> bytes:
    """A label whose coins leave a share far from 0 and 1, where nothing could be seen to move."""
    labels = [f"count {trial}".encode() for trial in range(1_000)]
    shares = ((label, _share(bench, 0, 0, InjectedCoins(label).stream("count"))) for label in labels)
    return next((label for label, share in shares if 0.3 < share < 0.7), labels[0])
