"""Is every unit clipped once and whole? The bench's steps, and the run's own network, against autograd unit by unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from privfm.dp.clipping import ClippingEngine
from privfm.dp.coins import InjectedCoins
from privfm.federation.network import Learner
from privfm_attacks.bench import OUTPUTS, Bench, KnownUnits
from privfm_attacks.noise_checks import steps_of
from privfm_attacks.stacked import GIVEN, Pulls, Stack, autograd_of, clipped_sum
from privfm_attacks.thresholds import ROUNDING
from privfm_attacks.verdicts import Finding

__all__ = ["called_twice", "later_steps", "not_finite", "own_network", "scale", "sum_of_clipped", "unit_sensitivity"]

MOST_ROWS = 64
"""Units with gradients of their own; those beyond share them."""

ENOUGH = 8
"""Units that must have been drawn for a check to mean anything: more than two micro-batches."""


def sum_of_clipped(bench: Bench) -> Iterator[Finding]:
    """Several micro-batches of units, some above and some below the clip norm."""
    yield _compare(bench, "clipped sum")


def called_twice(bench: Bench) -> Iterator[Finding]:
    """A layer that is called twice for a unit has one gradient, clipped once."""
    yield _compare(bench, "shared parameter", calls=2)


def not_finite(bench: Bench) -> Iterator[Finding]:
    """Units without a finite gradient add nothing and spoil nobody's."""
    yield _compare(bench, "not finite", spoilt=(math.nan, math.inf))


def _compare(bench: Bench, name: str, *, calls: int = 1, spoilt: tuple[float, ...] = ()) -> Finding:
    """Whether a step with some units differs from one with zero gradients by the sum of what each may add."""
    units = bench.units_for(24)
    label, drawn = bench.label_drawing(units, lambda drawn: len(drawn) >= ENOUGH)
    if len(drawn) < ENOUGH:
        return Finding(name, False, f"only {len(drawn)} of {units} units were ever drawn: nothing could be tested")
    clip_norm, objective = bench.mechanism.clip_norm, Pulls(_rows(units, 6))
    _lengthen(objective, Stack(calls), zip(sorted(drawn), clip_norm * np.geomspace(0.2, 5.0, len(drawn)), strict=True))
    for unit, value in zip(sorted(drawn)[1::4], spoilt, strict=False):
        objective.rows[unit, 1] = value
    gradients = (autograd_of(Stack(calls), objective, unit) for unit in sorted(drawn))
    wanted = clipped_sum(gradients, clip_norm) / bench.expected_units
    zero = _step(bench, Pulls(torch.zeros(units, GIVEN)), label, units, calls)
    found = _step(bench, objective, label, units, calls) - zero
    size = max(float(wanted.norm()), clip_norm / bench.expected_units)
    error = float((found - wanted).norm()) / size
    detail = f"{len(drawn)} units: relative error {error:.1e} against a sum over units"
    return Finding(name, error < _layers_rounding(bench) + _noise_rounding(zero, size), detail)


def _rows(units: int, seed: int) -> Float[Tensor, "units given"]:
    """Of units that pull about one way, so that their sum is long; far longer than any clip norm."""
    generator = torch.Generator().manual_seed(seed)
    return 1e3 * (1 + 0.3 * torch.randn(units, GIVEN, generator=generator))


def _lengthen(objective: Pulls, network: nn.Module, norms: Iterable[tuple[int, float]]) -> None:
    """Give units gradients of these norms."""
    for unit, norm in norms:
        objective.rows[unit] *= norm / float(autograd_of(network, objective, unit).norm())


def _step(bench: Bench, objective: Pulls, label: str, units: int, calls: int = 1) -> Float[Tensor, " parameters"]:
    """A step's released gradient under coins that a second call repeats."""
    releases = bench.releases_of(Stack(calls), objective, units, InjectedCoins(label.encode()))
    return releases.gradient((1, 0, 0)).vector.double()


def _layers_rounding(bench: Bench) -> float:
    """Relative: what layers round off in the precision that they compute in."""
    return ROUNDING if bench.plan.performance.precision == "float32" else 3e-2


def _noise_rounding(noise: Tensor, size: float) -> float:
    """Relative to a size: what adding this noise to numbers in single precision rounds off."""
    return 2**-21 * float(noise.norm()) / size


def later_steps(bench: Bench) -> Iterator[Finding]:
    """One after the other, steps of several rounds and attempts release what units drawn in each add, and no other's.

    The clip norm stays where it starts: how it adapts is looked at apart.
    """
    bench.mechanism, units = replace(bench.mechanism, adaptive=None), bench.units_for(ENOUGH)
    clip_norm, objective = bench.mechanism.clip_norm, Pulls(_rows(min(units, MOST_ROWS), 11))
    lengths = clip_norm * np.geomspace(0.2, 100.0, len(objective.rows))
    _lengthen(objective, Stack(), enumerate(lengths.tolist()))
    added = [autograd_of(Stack(), objective, unit) for unit in range(len(objective.rows))]
    own, blank = (
        bench.releases_of(Stack(), each, units, InjectedCoins(b"later steps"), micro_batch=8)
        for each in (objective, Pulls(torch.zeros(units, GIVEN)))
    )
    worst = 0.0
    for step in steps_of(bench):
        released, noise = (one.gradient(step).vector.double() for one in (own, blank))
        drawn = cast(KnownUnits, own.units).drawn[-1] % len(added)
        wanted = clipped_sum([added[unit] for unit in drawn], clip_norm) / bench.expected_units
        size = max(float(wanted.norm()), clip_norm / bench.expected_units)
        worst = max(worst, float((released - noise - wanted).norm()) / size - _noise_rounding(noise, size))
    yield Finding("clipped sum of later steps", worst < _layers_rounding(bench), f"relative error {worst:.1e} at worst")


def unit_sensitivity(bench: Bench) -> Iterator[Finding]:
    """A unit whose gradient is many clip norms long moves the sum by one clip norm, and no other way.

    Beyond all measure it may also count as not finite, and add nothing.
    """
    others, clip_norm = 8, bench.mechanism.clip_norm
    label, _ = bench.label_drawing(others + 1, lambda drawn: others in drawn)
    objective, size = Pulls(_rows(others + 1, 7)), clip_norm / bench.expected_units
    _lengthen(objective, Stack(), ((unit, 0.3 * clip_norm) for unit in range(others)))
    without, row = _step(bench, objective, label, others), objective.rows[others].clone()
    rounding = ROUNDING + _noise_rounding(without, size)  # in any precision: norms are taken of what is added
    for length, least in ((1e2, 0.99), (1e6, 0.99), (1e12, 0.99), (1e25, 0.0), (1e35, 0.0)):
        objective.rows[others] = row
        _lengthen(objective, Stack(), [(others, length * clip_norm)])
        reach = float((_step(bench, objective, label, others + 1) - without).norm()) / size
        detail = f"one unit of {length:g} clip norms moves the sum by {reach:.5f}"
        yield Finding("sensitivity", least - rounding < reach <= 1 + rounding, detail)


def scale(bench: Bench) -> Iterator[Finding]:
    """Units more, whose gradients are zero, change nothing: neither rate nor divisor comes from the data."""
    few = bench.hospital.nominal_units
    row = torch.nn.functional.normalize(torch.ones(1, OUTPUTS)) * bench.mechanism.clip_norm
    rows = torch.cat([row.expand(few, -1), torch.zeros(max(20, few), OUTPUTS)])

    def step(units: int) -> Tensor:
        return bench.releases(rows, InjectedCoins(b"scale"), units=units, micro_batch=64).gradient((1, 0, 0)).vector

    difference = float((step(len(rows)) - step(few)).abs().max())
    yield Finding("scale", difference == 0.0, f"as many blank units again change the result by {difference:.2g}")


def own_network(learner: Learner, units: int = 3) -> Iterator[Finding]:
    """The run's own network on random pixels: the engine's clipped sum is that of autograd's own gradients."""
    network, objective, plan = learner
    size, generator = plan.data.image_size, torch.Generator().manual_seed(1)
    views = torch.randn(units, 2, plan.data.channels, size, size, generator=generator)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    views = views.to(parameters[0].device)

    def losses() -> Tensor:
        return objective.unit_losses(network, views, [np.random.default_rng(unit) for unit in range(units)])

    def alone(unit: int) -> Tensor:
        parts = torch.autograd.grad(losses()[unit], parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten().double() for part in parts])

    gradients = [alone(unit) for unit in range(units)]
    lengths = sorted(float(gradient.norm()) for gradient in gradients)
    for name, clip_norm in (("some clipped", lengths[1]), ("all clipped", lengths[0] / 10)):
        wanted, engine = clipped_sum(gradients, clip_norm), ClippingEngine(network, clip_norm)
        engine.add(losses, units)
        error = float((engine.finish().vector - wanted).norm() / wanted.norm())
        yield Finding(f"own network, {name}", error < 1e-2, f"relative error {error:.1e} against autograd's gradients")
