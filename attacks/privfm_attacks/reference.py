"""The optimisers written out once more, from their papers, for comparison with those that hospitals use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from privfm.federation.optimizers import NoisedGradient
from privfm.plan import OptimizerPlan

__all__ = ["update_of"]

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
FLOOR = 0.1
"""Share of the noise's variance that DP-AdamBC takes for a second moment at least."""


def update_of(
    plan: OptimizerPlan, start: Float[Tensor, " parameters"], steps: Sequence[NoisedGradient]
) -> Float[Tensor, " parameters"]:
    """Return what a round's released gradients make of weights, less these.

    Source: Robbins & Monro 1951 for `sgd`; Loshchilov & Hutter 2019, algorithm 2, for `adam`; Tang et al. 2023,
    algorithm 1, with decoupled decay, for `adam-bc`.
    """
    weights, rate, decay = start.double(), plan.learning_rate, plan.weight_decay
    first, second, variance = torch.zeros_like(weights), torch.zeros_like(weights), 0.0
    for count, (released, std) in enumerate(steps, start=1):
        gradient = released.double()
        if plan.name == "sgd":
            weights = weights - rate * (gradient + decay * weights)
            continue
        first = BETA1 * first + (1 - BETA1) * gradient
        second = BETA2 * second + (1 - BETA2) * gradient**2
        variance = BETA2 * variance + (1 - BETA2) * std**2
        mean, square, noise = first / (1 - BETA1**count), second / (1 - BETA2**count), variance / (1 - BETA2**count)
        if plan.name == "adam-bc":
            square = (square - noise).clamp(min=FLOOR * noise)
        weights = weights - rate * decay * weights - rate * mean / (square.sqrt() + EPS)
    return (weights - start.double()).float()
