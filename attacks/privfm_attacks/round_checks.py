"""Does a round release what its steps make, no more often than is charged, and whom does it draw?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import cast

import numpy as np
import torch
from jaxtyping import Int64
from scipy import stats
from torch import Tensor

from privfm.dp.coins import InjectedCoins, Stream, SystemCoins
from privfm.federation.local_training import train_locally
from privfm.federation.optimizers import NoisedGradient
from privfm.federation.releases import Releases
from privfm_attacks.bench import INPUTS, OUTPUTS, Bench, KnownUnits
from privfm_attacks.reference import update_of
from privfm_attacks.thresholds import ALPHA, ROUNDING, dispersion_p
from privfm_attacks.verdicts import Finding

__all__ = ["charges", "sampling", "what_leaves"]

MANY = 300
"""Units that are drawn in a step, on average, where many are."""

STEPS = 20
"""Local steps of a round that are compared at most."""


def what_leaves(bench: Bench) -> Iterator[Finding]:
    """An update is what the optimiser makes of the released gradients, to the bit, in every round and attempt."""
    plan = bench.plan
    few = min(STEPS, plan.federation.local_steps)
    bench = bench.with_steps(few)
    rows, start = 2 * bench.mechanism.clip_norm * torch.randn(60, OUTPUTS), 0.01 * torch.randn(OUTPUTS * INPUTS)
    units = bench.units_for(12)
    whole, single = (bench.releases(rows, InjectedCoins(b"what leaves"), units=units) for _ in range(2))
    off, lengths, furthest = [], set(), 0.0
    for number, attempt in ((1, 0), (1, 1), (2, 0), (3, 0), (plan.federation.rounds, 2)):
        vectors = whole.of_round(start, number, attempt)
        lengths.add(tuple(vector.numel() for vector in vectors))
        update, steps = _by_steps(bench, single, start, (number, attempt))
        if not torch.equal(vectors[0], update):
            off.append(f"round {number}, attempt {attempt}")
        wanted = update_of(plan.optimizer, start, steps)
        rounding = 2**-21 * float(start.norm())
        furthest = max(furthest, (float((update - wanted).norm()) - rounding) / float(wanted.norm()))
    declared = (start.numel(), 1) if plan.evaluation.local_loss else (start.numel(),)
    told = f"vectors of {', '.join(map(str, sorted(lengths)))} numbers leave in a round, {declared} declared"
    yield Finding("what leaves", lengths == {declared}, told)
    yield Finding("update", not off, f"not what the steps released: {', '.join(off) or 'none'}")
    detail = f"relative difference {furthest:.1e} from {plan.optimizer.name} written out, of the released gradients"
    yield Finding("update by the optimiser", furthest < ROUNDING, detail)


def _by_steps(
    bench: Bench, releases: Releases, start: Tensor, attempt: tuple[int, int]
) -> tuple[Tensor, list[NoisedGradient]]:
    """A round's update from its gradients, asked for one by one, and these, with the noise that is declared for them.

    What units pull for is the same at any weights, so that gradients do not depend on the optimiser.
    """
    network, _, plan = releases.learner
    steps: list[NoisedGradient] = []

    def released(step: int) -> NoisedGradient:
        std = bench.noise_std(releases.mechanism.clip_norm)
        noised = releases.gradient((*attempt, step))
        steps.append(NoisedGradient(noised.vector.clone(), std))
        return noised

    update = train_locally(network, start, plan.optimizer, plan.federation.local_steps, released)
    return update, steps


def charges(bench: Bench) -> Iterator[Finding]:
    """As many releases as a round charges, each with the noise that is charged and coins of its own."""
    plan, counted = bench.plan, _Counting()
    releases = bench.releases(torch.zeros(1, OUTPUTS), counted, units=bench.units_for(12), micro_batch=8)
    start = torch.zeros(OUTPUTS * INPUTS)
    releases.of_round(start, 1, 0)
    charged, draws, noises = bench.mechanism.event(plan.steps_per_round), *counted.released()
    told = f"{draws} draws of units and {noises} of noise in a round, {charged.steps} steps charged"
    yield Finding("charged steps", charged.steps == plan.steps_per_round == draws == noises, told)
    releases.of_round(start, 1, 1)
    releases.of_round(start, 2, 0)
    twice = sum(count > 1 for count in counted.asked.values())
    yield Finding("coins of its own", twice == 0, f"{twice} of {len(counted.asked)} labels of coins were used twice")
    drawn, own = sum(map(len, cast(KnownUnits, releases.units).drawn)), counted.of_units()
    yield Finding("a generator each", drawn == own, f"{own} generators were made for {drawn} drawn units")
    declared, found = (bench.rate, bench.noise_multiplier), (charged.sample_rate, charged.noise_multiplier)
    yield Finding("charged mechanism", declared == found, f"charged as q, sigma = {found}, declared {declared}")


class _Counting:
    """The operating system's coins, and what was asked of them."""

    private = True

    def __init__(self) -> None:
        self._coins = SystemCoins()
        self.asked: Counter[tuple[str | int, ...]] = Counter()

    def stream(self, *label: str | int) -> Stream:
        self.asked[label] += 1
        return self._coins.stream(*label)

    def of_units(self) -> int:
        """Generators of units."""
        return sum(count for label, count in self.asked.items() if label[0] in ("unit", "loss unit"))

    def released(self) -> tuple[int, int]:
        """Draws of units, and of noise."""
        kinds: Counter[str | int] = Counter()
        for label, count in self.asked.items():
            kinds[label[0]] += count
        return kinds["draw"] + kinds["loss draw"], kinds["noise"] + kinds["loss noise"]


def sampling(bench: Bench) -> Iterator[Finding]:
    """Each unit takes part by a coin of its own of the declared rate, anew in every step: totals are binomial."""
    rate, steps, units = bench.rate, list(product(range(1, 6), range(2), range(20))), _units_to_draw(bench.rate)
    draws = _draws(bench, units, steps)
    totals, each = np.array([len(drawn) for drawn in draws]), np.bincount(np.concatenate(draws), minlength=units)
    once = all(len(set(drawn.tolist())) == len(drawn) for drawn in draws)
    p = stats.binomtest(int(totals.sum()), units * len(steps), rate).pvalue if once else 0.0
    detail = f"{totals.mean() / units:.4f} drawn, {rate:g} declared (p = {p:.2g})"
    yield Finding("sampling rate", bool(p > ALPHA), detail)
    if rate == 1.0:
        return
    p, ratio = dispersion_p(totals, units, rate), float(totals.var()) / (units * rate * (1 - rate))
    yield Finding("sampling variance", p > ALPHA, f"{ratio:.3f} of a Poisson sample's (p = {p:.2g})")
    p, ratio = dispersion_p(each, len(steps), rate), float(each.var()) / (len(steps) * rate * (1 - rate))
    yield Finding("sampling of each", p > ALPHA, f"units' shares spread {ratio:.3f} (p = {p:.2g})")
    yield _of_many(bench)
    draws += _draws(bench, units, steps[:20])
    if units * rate * (1 - rate) >= 15:  # so that two draws are the same by a chance of e^-30
        different = len({drawn.tobytes() for drawn in draws})
        yield Finding("fresh draws", different == len(draws), f"{different} different draws in {len(draws)} steps")


def _of_many(bench: Bench) -> Finding:
    """Nothing ends a draw: of a hospital with more units than it declared, hundreds are drawn, the last as often."""
    units = max(2 * bench.hospital.nominal_units, math.ceil(MANY / bench.rate))
    draws = _draws(bench, units, list(product(range(1, 3), range(1), range(10))))
    halves = [sum(int(((drawn < units // 2) == first).sum()) for drawn in draws) for first in (True, False)]
    sizes = [units // 2 * len(draws), (units - units // 2) * len(draws)]
    p = min(stats.binomtest(found, size, bench.rate).pvalue for found, size in zip(halves, sizes, strict=True))
    detail = f"{sum(halves) / len(draws):.0f} drawn of {units}, as often of either half (p = {2 * p:.2g})"
    return Finding("sampling of many", bool(2 * p > ALPHA), detail)


def _units_to_draw(rate: float) -> int:
    """So many that no two draws are alike by chance; where nearly all are drawn that would take too long."""
    enough = 60 if rate == 1.0 else max(60, round(20 / (rate * (1 - rate))))
    return enough if rate <= 0.5 else min(700, enough)


def _draws(bench: Bench, units: int, steps: list[tuple[int, int, int]]) -> list[Int64[np.ndarray, " drawn"]]:
    """Who was drawn, by what the hospital's own steps load."""
    micro_batch = max(8, round(units * bench.rate))
    releases = bench.releases(torch.zeros(1, OUTPUTS), SystemCoins(), units=units, micro_batch=micro_batch)
    for step in steps:
        releases.gradient(step)
    return cast(KnownUnits, releases.units).drawn
