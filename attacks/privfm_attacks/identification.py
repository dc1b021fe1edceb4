"""The informed adversary: which of N known patients is in a hospital's data, when everything else is known.

It is a rehearsal. The plan's mechanism runs all its steps on made-up patients, one of every N chosen by a secret coin,
and the adversary, who knows all N gradients and sees every noised step sum before masking, names the likeliest. No
mechanism with the plan's guarantee lets anybody be right more often than min over epsilon of e^epsilon / N +
delta(epsilon): without the patient each name is as good as another, and the patient changes the chance of a name by no
more than that.

Source: Balle, Cherubin & Hayes 2022 (arXiv 2201.04845), for the adversary; Hayes, Mahloujifar & Balle 2023 (arXiv
2302.07225), for bounds on what it finds, here with a uniform prior over N candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import optimize, stats
from torch import Tensor

from privfm.dp.accounting import delta_for
from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import Coins, SystemCoins
from privfm.dp.events import SampledGaussian
from privfm.dp.mechanism import WIDEST, StepMechanism
from privfm.federation.planning import mechanism_of
from privfm_attacks.bench import INPUTS, OUTPUTS, Bench, orthonormal

__all__ = [
    "CANDIDATES",
    "Picked",
    "highest_rate",
    "noisy_step",
    "pick_on_bench",
    "pick_real",
    "rate_allowed",
    "reconstruction_bound",
    "share_interval",
]

CANDIDATES = 100
GROUPS = INPUTS * OUTPUTS // CANDIDATES
"""Trials that one run of the mechanism holds: candidates of different groups pull different weights."""


@dataclass(frozen=True)
class Picked:
    """What came of trials in which one of N candidates was in.

    Args:
        right: whether the one that was in was named.
        drawn: whether it took part in any step: one that never did cannot be known.
    """

    right: Bool[np.ndarray, " trials"]
    drawn: Bool[np.ndarray, " trials"]

    @property
    def rate(self) -> float:
        return float(self.right.mean())

    @property
    def rate_of_drawn(self) -> float:
        """Among those that took part; 0 if nobody did."""
        return float(self.right[self.drawn].mean()) if self.drawn.any() else 0.0

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return limits of the chance to be right, with confidence 1 - alpha."""
        return share_interval(int(self.right.sum()), len(self.right), alpha)


def share_interval(hits: int, trials: int, alpha: float) -> tuple[float, float]:
    """Return the two-sided interval of Clopper & Pearson 1934 for a chance.

    >>> low, high = share_interval(5, 10, 0.05)
    >>> round(low, 3), round(high, 3)
    (0.187, 0.813)
    >>> share_interval(0, 10, 0.05)[0], share_interval(10, 10, 0.05)[1]
    (0.0, 1.0)
    """
    low = 0.0 if hits == 0 else float(stats.beta.ppf(alpha / 2, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(stats.beta.isf(alpha / 2, hits + 1, trials - hits))
    return low, high


def rate_allowed(event: SampledGaussian, epsilon: float, candidates: int = CANDIDATES) -> float:
    """Return e^epsilon / N + delta(epsilon): no rate of right names can be higher, whichever epsilon is taken.

    >>> round(rate_allowed(SampledGaussian(1.0, 1e6, 1), 0.0), 6)
    0.01
    """
    return min(1.0, math.exp(epsilon) / candidates + delta_for([event], epsilon))


def reconstruction_bound(event: SampledGaussian, candidates: int = CANDIDATES) -> float:
    """Return the most often that anybody can name the right one of `candidates`: `rate_allowed` at the best epsilon.

    Every epsilon bounds the rate, so a minimum that is found roughly is a bound as well.

    >>> round(reconstruction_bound(SampledGaussian(1.0, 0.5, 1)), 3)  # Gaussian: Phi(2 - Phi^-1(0.99))
    0.372
    """
    limits, width = (0.0, math.log(candidates)), {"xatol": 1e-3}
    found = optimize.minimize_scalar(
        lambda epsilon: rate_allowed(event, epsilon, candidates), bounds=limits, method="bounded", options=width
    )
    return min(rate_allowed(event, 0.0, candidates), float(found.fun))


def highest_rate(event: SampledGaussian, candidates: int = CANDIDATES) -> float:
    """Return how often the right one is named without any noise: whenever it took part, and by chance otherwise."""
    never = (1 - event.sample_rate) ** event.steps
    return 1 - never + never / candidates


def pick_on_bench(bench: Bench, steps: int, trials: int, *, share: float = 1.0) -> Picked:
    """Name candidates whose gradients are orthogonal and a whole clip norm long: the easiest to tell apart.

    Args:
        bench: of a hospital; what runs is its own mechanism.
        steps: noisy ones, as planned.
        trials: at least so many; whole runs are made.
        share: of the noise; the adversary goes on believing what is declared. Next to none is the control.
    """
    runs = [_run_bench(bench, steps, share, SystemCoins()) for _ in range(math.ceil(trials / GROUPS))]
    return Picked(np.concatenate([run.right for run in runs]), np.concatenate([run.drawn for run in runs]))


def _run_bench(bench: Bench, steps: int, share: float, coins: Coins) -> Picked:
    """All steps with one candidate of each group in the data."""
    declared = mechanism_of(bench.plan, bench.hospital)
    noisy = Bench(bench.plan, bench.hospital)
    noisy.mechanism = replace(declared, noise_multiplier=declared.noise_multiplier * share)
    chosen = (coins.stream("inclusion").uniform(GROUPS) * CANDIDATES).astype(np.int64)
    places = torch.from_numpy(np.arange(GROUPS) * CANDIDATES + chosen)
    rows, inputs = orthonormal(places)
    releases = noisy.releases(rows * declared.clip_norm * 2 * WIDEST, coins, micro_batch=GROUPS, inputs=inputs)
    scores, drawn = np.zeros((GROUPS, CANDIDATES)), np.zeros(GROUPS, dtype=bool)
    for step in range(steps):
        clip_norm = releases.mechanism.clip_norm
        released = releases.gradient((1, 0, step)).vector[: GROUPS * CANDIDATES].double().numpy()
        seen = released.reshape(GROUPS, CANDIDATES) * declared.divisor / clip_norm
        scores += _log_ratios(seen, 1.0, declared)
        drawn[releases.units.drawn[-1]] = True  # type: ignore[attr-defined]
    return Picked(scores.argmax(axis=1) == chosen, drawn)


def pick_real(
    mechanism: StepMechanism,
    rows: Float[Tensor, "candidates directions"],
    steps: int,
    trials: int,
    coins: Coins | None = None,
) -> Picked:
    """Name candidates by gradients as a network gives them, clipped, the same in every step.

    Args:
        mechanism: what runs and what the adversary believes; its clip norm stays what it is.
        rows: every candidate's gradient.
        steps: noisy ones, as planned.
        trials: exactly so many.
        coins: the operating system's by default.
    """
    coins, clip_norm = coins or SystemCoins(), mechanism.clip_norm
    clipped = rows * (clip_norm / rows.norm(dim=1, keepdim=True).clamp(min=clip_norm))
    squares = (clipped / clip_norm).double().square().sum(dim=1).numpy()
    chosen = (coins.stream("inclusion").uniform(trials) * len(rows)).astype(np.int64)
    scores, drawn = np.zeros((trials, len(rows))), np.zeros(trials, dtype=bool)
    for trial, candidate in enumerate(chosen):
        for step in range(steps):
            released, took_part = noisy_step(mechanism, clipped[candidate], coins, (trial, step))
            seen = (clipped @ released).double().numpy() * mechanism.divisor / clip_norm**2
            scores[trial] += _log_ratios(seen, squares, mechanism)
            drawn[trial] |= took_part
    return Picked(scores.argmax(axis=1) == chosen, drawn)


def noisy_step(
    mechanism: StepMechanism, gradient: Float[Tensor, " directions"], coins: Coins, label: tuple[int, int]
) -> tuple[Float[Tensor, " directions"], bool]:
    """What a step releases of one patient, and whether they were drawn."""
    drawn = len(mechanism.draw(1, coins.stream("draw", *label)))
    clipped = ClippedSum(gradient * drawn, mechanism.clip_norm, drawn, drawn)
    return mechanism.release(clipped, coins.stream("noise", *label)), bool(drawn)


def _log_ratios(
    seen: Float[np.ndarray, "*n"], squares: float | Float[np.ndarray, " n"], mechanism: StepMechanism
) -> Float[np.ndarray, "*n"]:
    """Return how much likelier a step is with a candidate in the data than without it, as logarithms.

    Of a step's inner product with the candidate's gradient g, in clip norms: (1 - q) N(0, sigma^2) + q N(g, sigma^2)
    against N(0, sigma^2).
    """
    rate, variance = mechanism.sample_rate, mechanism.gradient_noise_multiplier**2
    with np.errstate(divide="ignore"):
        drawn = np.log(rate) + (2 * seen - squares) / (2 * variance)
        return np.asarray(np.logaddexp(np.log1p(-rate), drawn))
