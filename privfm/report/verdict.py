"""What a probe comparison shows, in one honest sentence."""

from __future__ import annotations

from privfm.federation.records import ProbeComparison

__all__ = ["probe_verdict"]


def probe_verdict(probe: ProbeComparison) -> str:
    """Return what may be claimed: learning is what beats the noise-only control, not the untrained encoder.

    Noise and optimiser alone move an encoder's weights, and that alone can lift a probe.
    """
    control = "the noise-only control (same start, noise and steps, no images)"
    if probe.trained.low > probe.noise_only.high:
        return f"The encoder beats {control} beyond the uncertainty of the probe: it learnt from the patients' images."
    if probe.trained.value > probe.noise_only.value:
        return (
            f"The encoder scores above {control}, but the intervals overlap: "
            "this run alone does not show that it learnt from the patients' images."
        )
    return (
        f"The encoder does not score above {control}: this run shows no learning from the patients' images. "
        "privfm plan check says what would help."
    )
