"""The sampled Gaussian mechanism of one hospital: sampler, clip, noise and event from the same public numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import Stream
from privfm.dp.events import SampledGaussian
from privfm.dp.sampling import poisson_draw

__all__ = ["StepMechanism"]


@dataclass(frozen=True)
class StepMechanism:
    """Public constants of every noisy step of a hospital.

    Guarantees: `draw` followed by `release` of the drawn units' clipped sum is one Poisson-sampled Gaussian mechanism
    with `sample_rate` and `noise_multiplier` under adding or removing one unit. Nothing here depends on how many units
    the hospital really has.

    Args:
        sample_rate: chance of each unit to be drawn.
        nominal_units: declared number of units; with `sample_rate` it sets the divisor.
        clip_norm: L2 bound on one unit's gradient.
        noise_multiplier: noise standard deviation over `clip_norm`.

    Source: Abadi et al. 2016, algorithm 1; a divisor fixed in advance as in Opacus's `expected_batch_size`.
    """

    sample_rate: float
    nominal_units: int
    clip_norm: float
    noise_multiplier: float

    @property
    def divisor(self) -> float:
        """Expected number of drawn units of a hospital that has as many as it declared."""
        return self.sample_rate * self.nominal_units

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
        if clipped.clip_norm != self.clip_norm:
            raise ValueError(f"clip_norm={clipped.clip_norm} of the sum is not the mechanism's {self.clip_norm}")
        vector = clipped.vector
        noised = torch.from_numpy(stream.normal(vector.numel()))
        noised.mul_(self.noise_multiplier * self.clip_norm).add_(vector.cpu()).div_(self.divisor)
        return noised.to(device=vector.device, dtype=vector.dtype)
