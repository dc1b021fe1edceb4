"""What the mechanism audit calls chance and what rounding, fixed beforehand."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int64
from scipy import fft, stats

from privfm_attacks.verdicts import Finding

__all__ = ["ALPHA", "ROUNDING", "dispersion_p", "two_sided", "variance"]

ALPHA = 1e-6
"""Chance of a false alarm of one statistical check."""

ROUNDING = 1e-4
"""Relative, of sums in single precision."""


def two_sided(statistic: float, degrees: int) -> float:
    """Return the p-value of a chi-square statistic that may be too small as well as too large."""
    return min(1.0, 2 * float(min(stats.chi2.cdf(statistic, degrees), stats.chi2.sf(statistic, degrees))))


def variance(name: str, values: Float[np.ndarray, "draws values"], std: Float[np.ndarray, " draws"]) -> Finding:
    """Return a two-sided chi-square test that each draw's values are centred normals of its standard deviation."""
    degrees = values.shape[1]
    statistics = (values.astype(np.float64) ** 2).sum(axis=1) / std**2
    p_values = np.array([two_sided(float(each), degrees) for each in statistics]) * len(values)
    worst = int(p_values.argmin())
    ratio, p = math.sqrt(statistics[worst] / degrees), min(1.0, float(p_values[worst]))
    return Finding(name, p > ALPHA, f"noise is {ratio:.4f} of the declared {std[worst]:.4g} (p = {p:.2g})")


def dispersion_p(counts: Int64[np.ndarray, " counts"], trials: int, rate: float) -> float:
    """Return the two-sided p-value of how far independent binomial counts lie from their mean, summed up in squares.

    Exact for any rate and any number of counts: the sum's law is the squares' own, convolved with itself.
    """
    values = np.arange(trials + 1)
    squares, mass = (values - round(trials * rate)) ** 2, stats.binom.pmf(values, trials, rate)
    likely = mass > 1e-18
    law = np.bincount(squares[likely], mass[likely])
    size = fft.next_fast_len(len(counts) * (len(law) - 1) + 1, real=True)
    whole = np.clip(fft.irfft(fft.rfft(law, size) ** len(counts), size), 0.0, None)
    found = int(((counts - round(trials * rate)) ** 2).sum())
    return min(1.0, 2 * float(min(whole[: found + 1].sum(), whole[found:].sum())))
