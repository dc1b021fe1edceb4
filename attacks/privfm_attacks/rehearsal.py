"""Federations rehearsed with a stand-in: sums of noised updates, and a linear attacker's reading of every one of them.

The attacker is the coordinator. It knows the global model of a round, makes updates of its own at that model from
patients that it made up, some sets with the property and some without, and finds the direction that tells them apart
best. What that direction gives for a sum is, on average, how much weight hospitals with the property have in it.

A round's local steps are taken at the round's start: as many noised gradients, averaged. Hospitals share a supply of
patients: one with more than there are counts some several times.

Source: Kerkouche et al. 2023 (arXiv 2303.03908), for linear attackers on simulated updates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from privfm_attacks.participation import Participation
from privfm_attacks.stand_in import Bank, StandIn

__all__ = ["Hospitals", "Rehearsed", "linear_attack", "rehearse"]

SUPPLY = 128
"""Patients of either kind, at most, whose gradients are computed in a round for all hospitals."""

OWN = 32
"""Patients of either kind that the attacker made up."""

SHADOWS = 40
"""Updates of either kind that it makes of them."""

STEP = 0.05
"""How far the global model moves along an averaged gradient, in clip norms."""


@dataclass(frozen=True)
class Hospitals:
    """Public numbers of hospitals, one value each.

    Args:
        units: how many patients.
        rate: chance of a patient to be drawn in a step.
        noise: standard deviation, in clip norms, in a value of a step's gradient sum over drawn patients; 0 for none.
        weight: in the sum.
        steps: noisy steps in a round.
        share: of patients that have the property, in hospitals without and with it.
    """

    units: Int64[np.ndarray, " hospitals"]
    rate: Float[np.ndarray, " hospitals"]
    noise: Float[np.ndarray, " hospitals"]
    weight: Float[np.ndarray, " hospitals"]
    steps: int
    share: tuple[float, float]

    def __len__(self) -> int:
        return len(self.units)

    @property
    def noise_std(self) -> Float[np.ndarray, " hospitals"]:
        """In a value of an update: the mean of a round's gradients."""
        return np.asarray(self.noise / (self.rate * self.units) / np.sqrt(self.steps))


@dataclass(frozen=True)
class Rehearsed:
    """What came of a federation.

    Args:
        weights: of each hospital in each sum.
        readings: the attacker's, of each sum.
        moved: how far the model went from its start.
    """

    weights: Float[np.ndarray, "sums hospitals"]
    readings: Float[np.ndarray, " sums"]
    moved: Float[Tensor, " parameters"]


def rehearse(
    stand_in: StandIn,
    bank: Bank,
    hospitals: Hospitals,
    participation: Participation,
    labels: Bool[np.ndarray, " hospitals"],
    rng: np.random.Generator,
    *,
    read: bool = True,
) -> Rehearsed:
    """Play a federation and read its sums.

    Args:
        labels: which hospitals have the property.
        read: False leaves the attacker out; readings are zeros then.
    """
    supply = _Supply.drawn(bank, hospitals, labels, rng)
    own = _picked(bank, OWN, OWN, rng)
    model, weights, readings = stand_in.start.clone(), participation.matrix * hospitals.weight, []
    for row in weights:
        used = supply.counts[row > 0].any(axis=0)
        views = supply.views[torch.from_numpy(used)]
        gradients = stand_in.rows(model, torch.cat([views, own]) if read else views, int(rng.integers(2**62)))
        released = _released(gradients[: len(views)], supply.counts[:, used], hospitals, row, rng)
        if read:
            readings.append(_reading(gradients[-2 * OWN :], released, hospitals, float(row.sum()), rng))
        model = model - STEP * released / max(float(row.sum()), 1e-9)
    return Rehearsed(weights, np.array(readings) if read else np.zeros(len(weights)), model - stand_in.start)


@dataclass(frozen=True)
class _Supply:
    """Patients whose gradients are computed, and how often each hospital has each of them."""

    views: Float[Tensor, "supply frames c h w"]
    counts: Int64[np.ndarray, "hospitals supply"]

    @classmethod
    def drawn(
        cls, bank: Bank, hospitals: Hospitals, labels: Bool[np.ndarray, " hospitals"], rng: np.random.Generator
    ) -> _Supply:
        having = rng.binomial(hospitals.units, np.where(labels, hospitals.share[1], hospitals.share[0]))
        parts = [_dealt(hospitals.units - having, rng), _dealt(having, rng)]
        views = _picked(bank, parts[0].shape[1], parts[1].shape[1], rng)
        return cls(views, np.concatenate(parts, axis=1))


def _dealt(wanted: Int64[np.ndarray, " hospitals"], rng: np.random.Generator) -> Int64[np.ndarray, "hospitals supply"]:
    """Deal patients out, each to one hospital while there are enough of them."""
    total = int(wanted.sum())
    size = min(max(total, 1), SUPPLY)
    owners = np.repeat(np.arange(len(wanted)), wanted)
    patients = rng.permutation(np.arange(total) % size)
    counts = np.zeros((len(wanted), size), dtype=np.int64)
    np.add.at(counts, (owners, patients), 1)
    return counts


def _picked(bank: Bank, lacking: int, having: int, rng: np.random.Generator) -> Tensor:
    places = [torch.from_numpy(rng.permutation(len(bank))[:count]) for count in (lacking, having)]
    return torch.cat([views[chosen] for views, chosen in zip(bank.views, places, strict=True)])


def _released(
    gradients: Float[Tensor, "supply parameters"],
    counts: Int64[np.ndarray, "hospitals supply"],
    hospitals: Hospitals,
    weights: Float[np.ndarray, " hospitals"],
    rng: np.random.Generator,
) -> Float[Tensor, " parameters"]:
    """The weighted sum of the updates: Poisson draws of every step, noise, and the fixed divisor."""
    drawn = rng.binomial(counts * hospitals.steps, hospitals.rate[:, None])
    scale = weights / (hospitals.rate * hospitals.units * hospitals.steps)
    std = float(np.linalg.norm(weights * hospitals.noise_std))
    noise = torch.from_numpy(rng.standard_normal(gradients.shape[1], dtype=np.float32))
    return torch.from_numpy((scale @ drawn).astype(np.float32)) @ gradients + std * noise


def _reading(
    own: Float[Tensor, "patients parameters"],
    released: Float[Tensor, " parameters"],
    hospitals: Hospitals,
    weight: float,
    rng: np.random.Generator,
) -> float:
    """The attacker's estimate of how much weight hospitals with the property have in a sum."""
    units = max(2, round(float(hospitals.units.mean())))
    shadows = [_shadows(own, units, share, rng) for share in hospitals.share]
    direction, lacking = linear_attack(shadows[0], shadows[1], float((hospitals.noise_std**2).mean()))
    return float(released @ direction - weight * lacking)


def _shadows(
    own: Float[Tensor, "patients parameters"], units: int, share: float, rng: np.random.Generator
) -> Float[Tensor, "shadows parameters"]:
    """Updates of a hospital of that many patients, of whom a share has the property."""
    having = rng.binomial(units, share, size=SHADOWS)
    even = np.full(OWN, 1 / OWN)
    counts = np.concatenate([rng.multinomial(units - having, even), rng.multinomial(having, even)], axis=1)
    return torch.from_numpy(counts.astype(np.float32) / units) @ own


def linear_attack(
    lacking: Float[Tensor, "n parameters"], having: Float[Tensor, "n parameters"], variance: float
) -> tuple[Float[Tensor, " parameters"], float]:
    """Return the direction that tells updates apart best, scaled so that it gives one more with the property than
    without, and what it gives without.

    Fisher's discriminant with the covariance of the updates, shrunk, and of noise that they do not carry yet.

    Args:
        variance: of that noise in a value.
    """
    means = lacking.mean(dim=0), having.mean(dim=0)
    spread = torch.cat([lacking - means[0], having - means[1]])
    apart, count = means[1] - means[0], len(spread)
    shrunk = max(variance + 0.1 * float(spread.square().sum()) / count / min(spread.shape), 1e-12)
    kernel = spread @ spread.T + count * shrunk * torch.eye(count)
    direction = apart - spread.T @ torch.linalg.solve(kernel, spread @ apart)
    direction = direction / (direction @ apart).clamp(min=1e-20)
    return direction, float(direction @ means[0])
