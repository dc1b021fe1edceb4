"""Secret Poisson sampling over units."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from privfm.dp.coins import Stream

__all__ = ["poisson_draw"]


def poisson_draw(units: int, sample_rate: float, stream: Stream) -> Int64[np.ndarray, " drawn"]:
    """Return the indices of the drawn units: each of `units` independently with probability `sample_rate`.

    Guarantees: one coin a unit, whatever the others do; the number drawn is binomial and may be zero.

    Raises:
        ValueError: `sample_rate` outside (0, 1].

    Source: Abadi et al. 2016, section 3.1 ("lots"); the sampler that the accountants assume.
    """
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate={sample_rate}; it must lie in (0, 1]")
    return np.flatnonzero(stream.uniform(units) < sample_rate).astype(np.int64)
