"""What canaries show further downstream: in a hospital's updates, in sums over hospitals, and in the final model.

The hospital's optimiser and the average over hospitals come between its noised steps and what others see, and weaken
what canaries show; how much of a step's strength is left depends on both. So scores are standardised by the weights
that no canary pulls, and each view has a ceiling of its own: what it would show with next to no noise. A bound by
updates or sums that is above the claim makes the canary audit a LEAK; below it, it says nothing, since canaries are
weakened. What canary clients estimate of the final model is no bound, and reaches no verdict. All three tell how much
of what the steps' bound says is still there for a coordinator, or for whoever has the model.

The federation is rehearsed with the plan's mechanisms, optimisers, weights and strategy. One hospital holds canaries
alone and the others nobody. Updates are not rounded as masking needs, which would weaken the canaries further.

Source: Andrew et al. 2023, "One-shot empirical privacy estimation for federated learning" (arXiv 2302.03098), for
canaries of random directions and the cosines that the final model makes with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import optimize, stats
from torch import Tensor

from privfm.dp.coins import SystemCoins
from privfm.federation.planning import update_weight
from privfm.federation.releases import Releases
from privfm.federation.strategies import make_strategy
from privfm.plan import HospitalPlan, Plan
from privfm_attacks.bench import INPUTS, OUTPUTS, Bench, orthonormal
from privfm_attacks.bounds import MOST, gaussian_pair_bound

__all__ = ["Downstream", "epsilon_of_normals", "look_downstream"]

MOST_STEPS = 2_000
"""Of all hospitals together in a rehearsal; a longer plan is rehearsed in its first rounds."""


@dataclass(frozen=True)
class Downstream:
    """Epsilon from below by what others see, and how much could have been seen without noise.

    Args:
        updates, updates_ceiling: by the hospital's updates, before they are masked.
        sums, sums_ceiling: by sums over hospitals, which is what the coordinator sees.
        clients: by the final model, as canary clients estimate it: an estimate, no bound.
        rounds: that were rehearsed.
        scores: of the canaries in sums, inside and outside.
    """

    updates: float
    updates_ceiling: float
    sums: float
    sums_ceiling: float
    clients: float
    rounds: int
    scores: dict[str, Float[np.ndarray, " _"]]


def look_downstream(plan: Plan, hospital: HospitalPlan, canaries: int, alpha: float) -> Downstream:
    """Return what canaries of one hospital show downstream.

    Args:
        canaries: at most as many as there are directions.
        alpha: of each bound.
    """
    each_round = plan.federation.local_steps * len(plan.hospitals)
    rounds = min(plan.federation.rounds, max(1, MOST_STEPS // each_round))
    noised, bare = (_Scored.made(plan, hospital, canaries, rounds, share) for share in (1.0, 1e-3))
    delta = plan.privacy.delta
    return Downstream(
        updates=noised.bound(noised.updates, delta, alpha),
        updates_ceiling=bare.bound(bare.updates, delta, alpha),
        sums=noised.bound(noised.sums, delta, alpha),
        sums_ceiling=bare.bound(bare.sums, delta, alpha),
        clients=_by_clients(plan, hospital, canaries, rounds),
        rounds=rounds,
        scores={"inside": noised.sums[noised.included], "outside": noised.sums[~noised.included]},
    )


@dataclass(frozen=True)
class _Scored:
    """Of each canary: whether it was in, and how updates and sums moved against its gradient."""

    included: Bool[np.ndarray, " canaries"]
    updates: Float[np.ndarray, " canaries"]
    sums: Float[np.ndarray, " canaries"]

    @classmethod
    def made(cls, plan: Plan, hospital: HospitalPlan, canaries: int, rounds: int, share: float) -> _Scored:
        coins = SystemCoins()
        included = coins.stream("inclusion").words(canaries) % 2 == 1
        rows, inputs = orthonormal(torch.from_numpy(np.flatnonzero(included)))
        updates, sums = np.zeros(canaries), np.zeros(canaries)
        for seen in _played(plan, hospital, rows, inputs, rounds, share):
            updates += _standardised(seen.update, canaries)
            sums += _standardised(seen.summed, canaries)
        return cls(included, updates, sums)

    def bound(self, scores: Float[np.ndarray, " canaries"], delta: float, alpha: float) -> float:
        return gaussian_pair_bound(scores[self.included], scores[~self.included], delta, alpha)


def _standardised(moved: Float[Tensor, " weights"], canaries: int) -> Float[np.ndarray, " canaries"]:
    """How far weights went down the canaries' gradients, by what weights without a canary do."""
    values = moved.double().numpy()
    return np.asarray(-values[:canaries] / max(float(values[canaries:].std()), 1e-300))


@dataclass(frozen=True)
class _Round:
    """What the hospital computed, what the coordinator sees, and where the model is now."""

    update: Float[Tensor, " weights"]
    summed: Float[Tensor, " weights"]
    model: Float[Tensor, " weights"]


def _played(
    plan: Plan,
    hospital: HospitalPlan,
    rows: Float[Tensor, "units outputs"],
    inputs: Float[Tensor, "units inputs"],
    rounds: int,
    share: float = 1.0,
) -> Iterator[_Round]:
    """Play a federation in which one hospital holds known units and the others nobody, with a share of the noise."""
    releases = {
        each.id: _hospital(plan, each, rows, inputs, share, known=each.id == hospital.id) for each in plan.hospitals
    }
    weights = {each.id: update_weight(plan, each) for each in plan.hospitals}
    strategy, model = make_strategy(plan.federation), torch.zeros(OUTPUTS * INPUTS)
    for number in range(1, rounds + 1):
        updates = {name: each.of_round(model, number, 0)[0] for name, each in releases.items()}
        summed = torch.stack([weights[name] * update for name, update in updates.items()]).sum(dim=0)
        model = strategy.step(model, summed / sum(weights.values()))
        yield _Round(updates[hospital.id], summed, model)


def _hospital(
    plan: Plan, hospital: HospitalPlan, rows: Tensor, inputs: Tensor, share: float, *, known: bool
) -> Releases:
    """A hospital with the known units, or with nobody."""
    bench = Bench(plan, hospital)
    bench.mechanism = replace(bench.mechanism, noise_multiplier=bench.mechanism.noise_multiplier * share)
    count = len(rows) if known else 0
    scaled = rows * bench.mechanism.clip_norm
    return bench.releases(scaled, SystemCoins(), units=count, micro_batch=max(1, count), inputs=inputs)


def _by_clients(plan: Plan, hospital: HospitalPlan, canaries: int, rounds: int) -> float:
    """The epsilon that cosines between canaries of random directions and the final model imply."""
    rng = np.random.default_rng()
    rows, inputs = (_random_directions(rng, canaries, size) for size in (OUTPUTS, INPUTS))
    for seen in _played(plan, hospital, rows, inputs, rounds):
        final = seen.model
    along = torch.einsum("co,oi,ci->c", rows, -final.reshape(OUTPUTS, INPUTS), inputs) / final.norm()
    cosines = along.double().numpy() * np.sqrt(final.numel())  # of a canary that nobody saw: N(0, 1)
    return epsilon_of_normals(float(cosines.mean()), float(cosines.std(ddof=1)), plan.privacy.delta)


def _random_directions(rng: np.random.Generator, count: int, size: int) -> Float[Tensor, "{count} {size}"]:
    drawn = rng.standard_normal((count, size)).astype(np.float32)
    return torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def epsilon_of_normals(mean: float, std: float, delta: float) -> float:
    """Return the epsilon at `delta` that telling N(0, 1) from N(mean, std^2) implies.

    Source: Andrew et al. 2023, section 3, by numerical integration of the hockey-stick divergence, both ways.

    >>> round(epsilon_of_normals(1.0, 1.0, 1e-5), 2)
    4.38
    """
    reach = 12 * max(1.0, std)
    at = np.linspace(min(0.0, mean) - reach, max(0.0, mean) + reach, 40_001)
    densities = stats.norm.pdf(at), stats.norm.pdf(at, mean, std)

    def excess(epsilon: float) -> float:
        more = [np.maximum(one - np.exp(epsilon) * other, 0.0) for one, other in (densities, densities[::-1])]
        return max(float(np.trapezoid(each, at)) for each in more) - delta

    if excess(0.0) <= 0:
        return 0.0
    return MOST if excess(MOST) > 0 else float(optimize.brentq(excess, 0.0, MOST, xtol=1e-4))
