"""What a run shows about learning, in honest sentences.

Learning is what beats the noise-only control, not the untrained encoder: noise and optimiser alone move an encoder's
weights, and that alone can lift a probe.
"""

from __future__ import annotations

from privfm.federation.records import ProbeComparison, PublicLoss
from privfm.objectives import Reconstructs, get_objective
from privfm.plan import Plan

__all__ = ["probe_verdict", "public_loss_verdict"]


def probe_verdict(probe: ProbeComparison) -> str:
    """Return what a linear probe may claim."""
    control = "the noise-only control (same start, noise and steps, no images)"
    if probe.trained.low > probe.noise_only.high:
        return f"The encoder beats {control} beyond the uncertainty of the probe: it learnt from the patients' images."
    if probe.trained.value > probe.noise_only.value:
        return (
            f"The encoder scores above {control}, but the intervals overlap: "
            "the probe alone does not show that it learnt from the patients' images."
        )
    return (
        f"The encoder does not score above {control}: the probe shows no learning from the patients' images. "
        "privfm plan check says what would help."
    )


def public_loss_verdict(loss: PublicLoss, plan: Plan) -> str:
    """Return what the loss on public images may claim; lower is better, where it is of pixels.

    Draws of noise differ by more than small gains do, so one draw is a yardstick and no proof.
    """
    told = (
        f"Loss on public images: {loss.start:.4f} at the start, {loss.noise_only:.4f} after one draw of noise alone, "
        f"{loss.trained:.4f} after training"
    )
    if not isinstance(get_objective(plan.objective.name, **plan.objective.options), Reconstructs):
        return f"{told}. Each is compared with what the same weights make of public images, so it claims nothing."
    if loss.trained >= loss.noise_only:
        return f"{told}. It does not show learning from the patients' images."
    gain = f"{told}: {loss.noise_only - loss.trained:.4f} better than the noise"
    if loss.trained >= loss.start:
        return f"{gain}, but not better than the start: noise cost more than the patients' images gave."
    return f"{gain}, {loss.start - loss.trained:.4f} better than the start. Draws differ: a small gain may be luck."
