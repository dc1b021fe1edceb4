"""Can anything be learnt under this much noise? A rule of thumb, worked out before any budget is spent.

A step's averaged update is (sum of clipped gradients + noise) / (q N). In units of the clip norm the gradients
contribute at most 1, and only if all patients pull the same way; the noise is a vector of norm sigma sqrt(d) / (q N)
for d trained parameters. Averaging over H hospitals divides the noise by sqrt(H). Over T steps gradients that keep
their direction add up to T, noise to sqrt(T) times one step's. So

    noise-to-signal = sigma sqrt(d) / (q N sqrt(H T))

compares the noise with the *longest signal possible*. What it cannot know is how well gradients agree (they start at a
good part of the clip norm and fall), and how much of the noise lies in directions that matter (little: the loss is flat
in most of them, which is why ratios well above zero still learn). It sorts the clear cases; the noise-only control of a
real run decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["DOUBTFUL_FROM", "NO_GO_FROM", "Forecast", "Verdict", "forecast"]

Verdict = Literal["go", "doubtful", "no-go"]

DOUBTFUL_FROM = 0.1
"""From here noise is a tenth of the longest signal possible, that is, comparable with a usual one."""

NO_GO_FROM = 1.0
"""From here the noise is longer than any signal could be."""


@dataclass(frozen=True)
class Forecast:
    """What a run's noise amounts to.

    Args:
        noise_per_step: norm of the noise in one averaged step, in clip norms; a signal is at most 1.
        noise_over_run: norm of all steps' noise together, in clip norms; a signal is at most `steps`.
        noise_to_signal: the second over `steps`.
        nominal_units: of one hospital, that this is worked out for.
        patients_for_parity: nominal units per hospital at which `noise_to_signal` would be 1, everything else equal.
        patients_for_go: likewise for `DOUBTFUL_FROM`.
        verdict: `go` below 0.1, `doubtful` below 1, else `no-go`.
    """

    noise_per_step: float
    noise_over_run: float
    noise_to_signal: float
    nominal_units: int | float
    patients_for_parity: int
    patients_for_go: int
    verdict: Verdict

    @property
    def reason(self) -> str:
        """The verdict in a sentence.

        >>> heavy = forecast(parameters=1_000_000, nominal_units=68, sample_rate=0.25, noise_multiplier=5, steps=100)
        >>> heavy.reason.split(";")[0]
        'the noise is 29.4 times the longest signal possible'
        """
        if self.verdict == "go":
            return f"the noise is {self.noise_to_signal:.2g} times the longest signal possible: there is room to learn"
        return (
            f"the noise is {self.noise_to_signal:.3g} times the longest signal possible; {self._what_would_help}: "
            "train fewer parameters, or find more patients"
        )

    @property
    def _what_would_help(self) -> str:
        """More patients: beside those that there are, and never fewer."""
        here, enough = f"{self.nominal_units:.0f}", f"more than {self.patients_for_go}"
        if self.verdict == "doubtful":
            return f"it is comfortable below {DOUBTFUL_FROM:g}, with {enough} patients a hospital (here {here})"
        return (
            f"it is shorter than that with more than {self.patients_for_parity} patients a hospital (here {here}), and "
            f"comfortable, below {DOUBTFUL_FROM:g}, with {enough}"
        )


def forecast(
    *,
    parameters: int,
    nominal_units: int | float,
    sample_rate: float,
    noise_multiplier: int | float,
    steps: int,
    hospitals: int = 1,
) -> Forecast:
    """How a run's noise compares with the most that it could learn. The clip norm cancels out.

    Args:
        parameters: trained parameters, d.
        nominal_units: of one hospital, N; where hospitals differ, their mean.
        sample_rate: q.
        noise_multiplier: sigma of the gradients; where the clip norm adapts, more than the one that is accounted for,
            see `privfm.dp.mechanism.StepMechanism.gradient_noise_multiplier`.
        steps: noisy steps in all, T.
        hospitals: equally weighted hospitals whose updates are averaged, H.

    Raises:
        ValueError: a value out of its bounds.

    >>> forecast(parameters=1_000_000, nominal_units=68, sample_rate=0.25, noise_multiplier=5, steps=100).verdict
    'no-go'
    >>> forecast(parameters=2_000, nominal_units=5_000, sample_rate=0.05, noise_multiplier=1, steps=500).verdict
    'go'
    """
    bounds = {"parameters": parameters, "nominal_units": nominal_units, "steps": steps, "hospitals": hospitals}
    for name, value in (bounds | {"noise_multiplier": noise_multiplier}).items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: must be finite and > 0")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate={sample_rate}: must be in (0, 1]")
    per_step = noise_multiplier * math.sqrt(parameters / hospitals) / (sample_rate * nominal_units)
    ratio = per_step / math.sqrt(steps)
    return Forecast(
        noise_per_step=per_step,
        noise_over_run=per_step * math.sqrt(steps),
        noise_to_signal=ratio,
        nominal_units=nominal_units,
        patients_for_parity=math.ceil(nominal_units * ratio / NO_GO_FROM),
        patients_for_go=math.ceil(nominal_units * ratio / DOUBTFUL_FROM),
        verdict="go" if ratio < DOUBTFUL_FROM else "doubtful" if ratio < NO_GO_FROM else "no-go",
    )
