"""Is noise what was declared: its size, its shape, nothing repeated within it, and nothing in common between steps?

One hospital's steps are taken one after another, so that whatever it might keep between them is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from jaxtyping import Float
from scipy import fft, stats

from privfm.dp import coins as coins_module
from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import Coins, Stream, SystemCoins
from privfm.federation import simulation
from privfm_attacks.bench import OUTPUTS, Bench
from privfm_attacks.thresholds import ALPHA, variance
from privfm_attacks.verdicts import Finding

__all__ = ["empty_draw", "long_noise", "noise_of_steps", "noise_scale", "own_entropy", "same_seed", "steps_of"]

Step = tuple[int, int, int]

PIECE = 1 << 16
LONG = 13 * PIECE
"""More than three of the pieces that noise is made in."""

WHOLE = 2048
"""Products that a sum is scaled for at least: of fewer it is further from normal."""


class _Taken(NamedTuple):
    """Released vectors of steps with zero gradients, the noise declared for each, and what the optimiser is told."""

    steps: list[Step]
    vectors: Float[np.ndarray, "steps values"]
    stds: Float[np.ndarray, " steps"]
    told: Float[np.ndarray, " steps"]


def steps_of(bench: Bench) -> list[Step]:
    """Return steps of the plan's first rounds and of its last, of first attempts and of second ones."""
    federation = bench.plan.federation
    rounds, steps = sorted({1, 2, 3, federation.rounds}), sorted({0, 1, federation.local_steps - 1})
    return [(number, attempt, step) for number in rounds for attempt in (0, 1) for step in steps]


def _take(bench: Bench, steps: list[Step], coins: Coins) -> _Taken:
    releases = bench.releases(torch.zeros(4, OUTPUTS), coins)
    vectors, stds, told = [], [], []
    for step in steps:
        stds.append(bench.noise_std(releases.mechanism.clip_norm))
        released = releases.gradient(step)
        vectors.append(released.vector.cpu().numpy())
        told.append(released.noise_std)
    return _Taken(steps, np.stack(vectors), np.array(stds), np.array(told))


def noise_scale(bench: Bench) -> Iterator[Finding]:
    """Zero gradients in, the declared noise out, also where many units were drawn."""
    rows = torch.zeros(bench.hospital.nominal_units, OUTPUTS)
    released = bench.releases(rows, SystemCoins(), micro_batch=64).gradient((1, 0, 0))
    yield variance("noise scale", released.vector[None].numpy(), np.array([bench.noise_std()]))


def empty_draw(bench: Bench) -> Iterator[Finding]:
    """A step in which nobody was drawn is as noisy as any other."""
    released = bench.releases(torch.zeros(1, OUTPUTS), SystemCoins(), units=0).gradient((1, 0, 0))
    yield variance("empty draw", released.vector[None].numpy(), np.array([bench.noise_std()]))


def noise_of_steps(bench: Bench) -> Iterator[Finding]:
    """In every round, attempt and step alike: declared, normal, without pattern, and new."""
    taken, other = _take(bench, steps_of(bench), SystemCoins()), _take(bench, [(1, 0, 0), (1, 0, 1)], SystemCoins())
    yield variance("noise of later steps", taken.vectors, taken.stds)
    off = float(np.abs(taken.told / taken.stds - 1).max())
    yield Finding("noise as told", off < 1e-6, f"the optimiser is told a deviation that is {off:.1e} off")
    yield _shape(taken)
    yield _pattern(taken)
    yield _repeats(taken)
    yield from _fresh(taken, other)


def _shape(taken: _Taken) -> Finding:
    """Kolmogorov and Smirnov's test against the normal distribution."""
    scaled = taken.vectors.astype(np.float64) / taken.stds[:, None]
    p = min(1.0, len(scaled) * min(float(stats.kstest(each, "norm").pvalue) for each in scaled))
    return Finding("noise shape", p > ALPHA, f"p = {p:.2g} for normal noise")


def _pattern(taken: _Taken) -> Finding:
    """No step's noise is like itself further on, however far."""
    values = taken.vectors.shape[1]
    found = max(float(np.abs(_along(each, each)[1 : values - WHOLE // 2]).max()) for each in _centred(taken))
    bound = _bound(len(taken.vectors) * values) + 0.5  # its tails are a little heavier than a normal's
    return Finding("noise pattern", found < bound, f"like itself by {found:.1f} standard deviations, bound {bound:.1f}")


def _repeats(taken: _Taken) -> Finding:
    """Few values occur twice, whatever their order or sign."""
    each, scaled = max(map(_repeated, taken.vectors)), taken.vectors / taken.stds[:, None].astype(np.float32)
    whole, allowed = _repeated(scaled), [_by_rounding(values.size) for values in (scaled[0], scaled)]
    detail = f"{each} values of a step and {whole} of all occur twice, {allowed[0]:.0f} and {allowed[1]:.0f} allowed"
    return Finding("noise repeats", each <= allowed[0] and whole <= allowed[1], detail)


def _repeated(values: np.ndarray) -> int:
    return int(values.size - np.unique(np.abs(values)).size)


def _by_rounding(values: int) -> float:
    """How often normal values in single precision coincide, at the very most."""
    return 64 + 8e-8 * values**2


def _fresh(taken: _Taken, other: _Taken) -> Iterator[Finding]:
    """No two steps' noise is alike, however far one is moved along the other."""
    kinds: dict[str, list[float]] = {"two steps": [], "two attempts": [], "two rounds": [], "two hospitals": []}
    noise, foreign = _centred(taken), _centred(other)
    for one, two in combinations(range(len(noise)), 2):
        kinds[_kind(taken.steps[one], taken.steps[two])].append(_likeness(noise[one], noise[two]))
    kinds["two hospitals"] = [_likeness(one, two) for one in noise for two in foreign]
    for name, found in kinds.items():
        bound = _bound(len(found) * 2 * noise.shape[1])
        detail = f"{len(found)} pairs alike by {max(found):.1f} standard deviations at most, bound {bound:.1f}"
        yield Finding(f"fresh noise, {name}", max(found) < bound, detail)


def _kind(one: Step, two: Step) -> str:
    if one[0] != two[0]:
        return "two rounds"
    return "two steps" if one[1] == two[1] else "two attempts"


def _centred(taken: _Taken) -> Float[np.ndarray, "steps values"]:
    vectors: Float[np.ndarray, "steps values"] = taken.vectors.astype(np.float64)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return vectors


def _likeness(one: Float[np.ndarray, " values"], two: Float[np.ndarray, " values"]) -> float:
    return max(float(np.abs(_along(*pair)).max()) for pair in ((one, two), (two, one)))


def _along(one: Float[np.ndarray, " values"], two: Float[np.ndarray, " values"]) -> Float[np.ndarray, " values"]:
    """Correlations of one with the other moved on by 0, 1, ..., in standard deviations of what chance gives."""
    size, values = fft.next_fast_len(2 * one.size, real=True), one.size
    products = fft.irfft(fft.rfft(one, size).conj() * fft.rfft(two, size), size)[:values]
    terms = np.maximum(values - np.arange(values), min(WHOLE, values))
    lengths = float(np.linalg.norm(one) * np.linalg.norm(two))
    scaled: Float[np.ndarray, " values"] = products * (values / max(lengths, 1e-300)) / np.sqrt(terms)
    return scaled


def _bound(looks: int) -> float:
    """Standard deviations that the furthest of so many normal values stays within."""
    return float(stats.norm.isf(ALPHA / (2 * looks)))


def long_noise(bench: Bench) -> Iterator[Finding]:
    """Of a network with many parameters too: noise is made in pieces, of which each must be as declared and new."""
    mechanism = bench.mechanism
    blank = ClippedSum(torch.zeros(LONG), mechanism.clip_norm)
    released = mechanism.release(blank, SystemCoins().stream("noise", 1, 0, 0)).numpy()
    pieces, std = released.reshape(-1, PIECE), bench.noise_std()
    taken = _Taken([], released[None], np.array([std]), np.array([std]))
    for finding in (variance("", pieces, np.full(len(pieces), std)), _pattern(taken), _repeats(taken)):
        yield Finding(f"long {finding.check or 'noise scale'}", finding.passed, finding.detail)


def own_entropy() -> Iterator[Finding]:
    """A stream's key is 32 bytes that the operating system gave for it, and every hospital's coins are such."""
    given: list[bytes] = []

    def urandom(count: int) -> bytes:
        given.append(os.urandom(count))
        return given[-1]

    with mock.patch.object(coins_module, "os", SimpleNamespace(urandom=urandom)):
        read = [simulation.system_coins(name).stream("noise", 1, 0, 0).read(64) for name in ("a", "b", "a")]
    keyed = [Stream(key).read(64) for key in given if len(key) == 32]
    told = f"{len(given)} keys were asked of the operating system for {len(read)} streams"
    yield Finding("keys of the operating system", read == keyed, told)


def same_seed(bench: Bench) -> Iterator[Finding]:
    """Whoever seeds the process's own generators gets neither noise nor draws back."""
    taken = []
    for _ in range(2):
        with _seeded():
            blank, units = torch.zeros(1, OUTPUTS), bench.units_for(40)
            releases = bench.releases(blank, SystemCoins(), units=units, micro_batch=64)
            taken.append((releases.gradient((1, 0, 0)).vector.double().numpy(), releases.units.drawn[0].tolist()))  # type: ignore[attr-defined]
    (one, first), (two, second) = taken
    found, bound = _likeness(one, two), _bound(2 * one.size)
    yield Finding(
        "fresh noise, same seed", found < bound, f"alike by {found:.1f} standard deviations, {bound:.1f} allowed"
    )
    if 40 * (1 - bench.rate) >= 20:
        yield Finding("fresh draws, same seed", first != second, f"{len(first)} and {len(second)} units drawn")


@contextmanager
def _seeded() -> Iterator[None]:
    """The generators of torch and numpy in one state, and then as they were."""
    of_torch, of_numpy = torch.get_rng_state(), np.random.get_state()
    torch.manual_seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        np.random.set_state(of_numpy)
