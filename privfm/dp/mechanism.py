"""The sampled Gaussian mechanism of one hospital: sampler, clip, noise and event from the same public numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import Stream
from privfm.dp.events import SampledGaussian
from privfm.dp.sampling import poisson_draw

__all__ = ["NOISE_TAIL", "WIDEST", "AdaptiveClipping", "StepMechanism"]

NOISE_TAIL = 9.0
"""Standard deviations of noise that ranges leave room for; beyond lies 2e-19 of the mass."""

WIDEST = 10.0
"""How many times the clip norm that a run starts with an adapted one may become, or fall below."""


@dataclass(frozen=True)
class AdaptiveClipping:
    """How the clip norm follows a quantile of the norms of unit gradients, privately.

    Source: Andrew et al. 2021, "Differentially private learning with adaptive clipping", algorithm 1, for units in
    place of clients.

    Args:
        quantile: share of unit gradients that are not to be clipped, in (0, 1).
        start: the clip norm that a run starts with.
        learning_rate: of the geometric steps.
    """

    quantile: float
    start: float
    learning_rate: float = 0.2

    def next(self, clip_norm: float, share: float) -> float:
        """Return the clip norm after a step in which a noised `share` of unit gradients was within `clip_norm`.

        >>> clipping = AdaptiveClipping(0.5, start=1.0)
        >>> clipping.next(1.0, share=1.0) < 1.0 < clipping.next(1.0, share=0.0)
        True
        """
        moved = clip_norm * math.exp(-self.learning_rate * (min(max(share, 0.0), 1.0) - self.quantile))
        return min(max(moved, self.start / WIDEST), self.start * WIDEST)


@dataclass(frozen=True)
class StepMechanism:
    """Public constants of every noisy step of a hospital.

    Guarantees: `draw` followed by `release` of the drawn units' clipped sum, and by `adapted` where the clip norm
    adapts, is one Poisson-sampled Gaussian mechanism with `sample_rate` and `noise_multiplier` under adding or removing
    one unit. Nothing here depends on how many units the hospital really has.

    Args:
        sample_rate: chance of each unit to be drawn.
        nominal_units: declared number of units; with `sample_rate` it sets the divisor.
        clip_norm: L2 bound on one unit's gradient.
        noise_multiplier: noise standard deviation over sensitivity, of all that a step releases together.
        adaptive: None keeps the clip norm as it is.
        noise_terms: of how many draws each noise value is made, see `Stream.normal`.

    Source: Abadi et al. 2016, algorithm 1; a divisor fixed in advance as in Opacus's `expected_batch_size`.
    """

    sample_rate: float
    nominal_units: int
    clip_norm: float
    noise_multiplier: float
    adaptive: AdaptiveClipping | None = None
    noise_terms: int = 1

    @property
    def divisor(self) -> float:
        """Expected number of drawn units of a hospital that has as many as it declared."""
        return self.sample_rate * self.nominal_units

    @property
    def count_noise(self) -> float:
        """Noise standard deviation of the count behind an adaptive clip norm, whose sensitivity is 1/2.

        A twentieth of the expected units, as Andrew et al. 2021 advise, but never so little that gradients would need
        over 1.16 times the noise.
        """
        return max(self.divisor / 20, self.noise_multiplier)

    @property
    def gradient_noise_multiplier(self) -> float:
        """Noise standard deviation of the summed gradients over `clip_norm`.

        Where a count is released as well, more than `noise_multiplier`, so that both together are one Gaussian
        mechanism with that.  Source: Andrew et al. 2021, theorem 1.

        >>> round(StepMechanism(0.1, 400, 1.0, 1.0, AdaptiveClipping(0.5, 1.0)).gradient_noise_multiplier, 3)
        1.033
        """
        if self.adaptive is None:
            return self.noise_multiplier
        return 1 / math.sqrt(self.noise_multiplier**-2 - (2 * self.count_noise) ** -2)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise in each value of a released gradient."""
        return self.gradient_noise_multiplier * self.clip_norm / self.divisor

    def event(self, steps: int) -> SampledGaussian:
        """Return what the ledger charges for `steps` steps."""
        return SampledGaussian(self.sample_rate, self.noise_multiplier, steps)

    def draw(self, units: int, stream: Stream) -> Int64[np.ndarray, " drawn"]:
        """Return which of the hospital's `units` units take part in a step."""
        return poisson_draw(units, self.sample_rate, stream)

    def release(self, clipped: ClippedSum, stream: Stream) -> Float[Tensor, " parameters"]:
        """Return the noised gradient: (sum + noise) / divisor. Also for an empty draw, whose sum is zero.

        Raises:
            ValueError: the sum was clipped to another norm than the noise is scaled for.
        """
        self._check(clipped)
        vector = clipped.vector
        noised = torch.from_numpy(stream.normal(vector.numel(), self.noise_terms))
        noised.mul_(self.gradient_noise_multiplier * self.clip_norm).add_(vector.cpu()).div_(self.divisor)
        return noised.to(device=vector.device, dtype=vector.dtype)

    def adapted(self, clipped: ClippedSum, stream: Stream) -> StepMechanism:
        """Return the mechanism of the next step, whose clip norm has followed the step's noised count.

        Each drawn unit adds 1/2 to a sum if its gradient was within the clip norm, else takes 1/2 away; a sum over
        units that is centred so has a sensitivity of 1/2 under adding or removing one.

        Args:
            stream: another than that of `release`.

        Raises:
            ValueError: the sum was clipped to another norm.
        """
        self._check(clipped)
        if self.adaptive is None:
            return self
        noise = self.count_noise * float(stream.normal(1, self.noise_terms)[0])
        share = 0.5 + (clipped.within - clipped.units / 2 + noise) / self.divisor
        return replace(self, clip_norm=self.adaptive.next(self.clip_norm, share))

    def release_mean(self, values: Sequence[float], bound: float, stream: Stream) -> float:
        """Return the noised mean of a value of each unit of a draw of its own: one more step of the mechanism.

        Values are centred on half of the bound, so that a unit moves the sum by that at most; where the declared number
        of units is off, the mean leans towards it.

        Args:
            values: clamped to [0, bound]; one that is not finite counts as the bound.
            bound: a public number.
        """
        half = bound / 2
        total = math.fsum(min(max(value, 0.0), bound) - half if math.isfinite(value) else half for value in values)
        noise = self.noise_multiplier * half * float(stream.normal(1, self.noise_terms)[0])
        return half + (total + noise) / self.divisor

    def mean_std(self, bound: float) -> float:
        """Return the standard deviation of a released mean's noise."""
        return self.noise_multiplier * bound / 2 / self.divisor

    def mean_reach(self, bound: float) -> float:
        """Return how far from zero a released mean can lie, noise and twice the expected draw included."""
        return bound / 2 * (3 + NOISE_TAIL * self.noise_multiplier / self.divisor)

    def _check(self, clipped: ClippedSum) -> None:
        if clipped.clip_norm != self.clip_norm:
            raise ValueError(f"clip_norm={clipped.clip_norm} of the sum is not the mechanism's {self.clip_norm}")
