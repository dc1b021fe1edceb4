"""The linear probe of a run's backbone beside what it has to beat."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from privfm.data import ImageSet
from privfm.evaluation import linear_probe
from privfm.federation.network import Learner, build_learner, trained, write_trained
from privfm.federation.observer import Observer
from privfm.federation.records import Interval, ProbeComparison

__all__ = ["compare_by_probe"]


def compare_by_probe(
    learner: Learner,
    *,
    initial: Float[Tensor, " parameters"],
    noise_only: Float[Tensor, " parameters"],
    fit: ImageSet,
    test: ImageSet,
    observer: Observer,
) -> ProbeComparison:
    """Return the probes of the trained network, an untrained one, the noise-only control and the run's start.

    Args:
        learner: the trained network; it is left as it was.
        initial: trainable parameters at the run's start.
        noise_only: trainable parameters of the control.
        fit: labelled images that the probes are fitted on.
        test: labelled images of held-out patients that they are scored on.
    """
    final = trained(learner.network)
    scores = [_probe(learner, fit, test)]
    for state in (noise_only, initial):
        observer.progress("linear probe", len(scores), 4)
        write_trained(learner.network, state)
        scores.append(_probe(learner, fit, test))
    write_trained(learner.network, final)
    observer.progress("linear probe", 3, 4)
    untrained = _probe(build_learner(learner.plan), fit, test)
    observer.progress("linear probe", 4, 4)
    return ProbeComparison(trained=scores[0], untrained=untrained, noise_only=scores[1], initial=scores[2])


def _probe(learner: Learner, fit: ImageSet, test: ImageSet) -> Interval:
    result = linear_probe(learner.network.backbone, fit, test)
    return Interval(result.balanced_accuracy, result.low, result.high)
