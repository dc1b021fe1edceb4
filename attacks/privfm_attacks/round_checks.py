"""Does a round release what its steps make, no more often than is charged, and whom does it draw?"""

from __future__ import annotations

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
from privfm.federation.releases import Releases
from privfm_attacks.bench import INPUTS, OUTPUTS, Bench, KnownUnits
from privfm_attacks.thresholds import ALPHA, dispersion_p
from privfm_attacks.verdicts import Finding

__all__ = ["charges", "sampling", "what_leaves"]

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
    off, lengths = [], set()
    for number, attempt in ((1, 0), (1, 1), (2, 0), (3, 0), (plan.federation.rounds, 2)):
        vectors = whole.of_round(start, number, attempt)
        lengths.add(tuple(vector.numel() for vector in vectors))
        if not torch.equal(vectors[0], _by_steps(single, start, number, attempt)):
            off.append(f"round {number}, attempt {attempt}")
    declared = (start.numel(), 1) if plan.evaluation.local_loss else (start.numel(),)
    told = f"vectors of {', '.join(map(str, sorted(lengths)))} numbers leave in a round, {declared} declared"
    yield Finding("what leaves", lengths == {declared}, told)
    yield Finding("update", not off, f"not what the steps released: {', '.join(off) or 'none'}")


def _by_steps(releases: Releases, start: Tensor, number: int, attempt: int) -> Tensor:
    """A round's update from its gradients, asked for one by one."""
    network, _, plan = releases.learner
    return train_locally(
        network,
        start,
        plan.optimizer,
        plan.federation.local_steps,
        lambda step: releases.gradient((number, attempt, step)),
    )


def charges(bench: Bench) -> Iterator[Finding]:
    """As many releases as a round charges, each with the noise that is charged and coins of its own."""
    plan, counted = bench.plan, _Counting()
    releases = bench.releases(torch.zeros(3, OUTPUTS), counted)
    start = torch.zeros(OUTPUTS * INPUTS)
    releases.of_round(start, 1, 0)
    charged, draws, noises = bench.mechanism.event(plan.steps_per_round), *counted.released()
    told = f"{draws} draws of units and {noises} of noise in a round, {charged.steps} steps charged"
    yield Finding("charged steps", charged.steps == plan.steps_per_round == draws == noises, told)
    releases.of_round(start, 1, 1)
    releases.of_round(start, 2, 0)
    twice = sum(count > 1 for count in counted.asked.values())
    yield Finding("coins of its own", twice == 0, f"{twice} of {len(counted.asked)} labels of coins were used twice")
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
    draws += _draws(bench, units, steps[:20])
    if units * rate * (1 - rate) >= 15:  # so that two draws are the same by a chance of e^-30
        different = len({drawn.tobytes() for drawn in draws})
        yield Finding("fresh draws", different == len(draws), f"{different} different draws in {len(draws)} steps")


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
