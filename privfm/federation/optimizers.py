"""A hospital's local optimisers. They see noised gradients only, so all they do is post-processing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from privfm.plan import OptimizerPlan

__all__ = ["FLOOR", "DPAdamBC", "NoisedGradient", "make_optimizer", "take_step"]

FLOOR = 0.1
"""Of the noise's variance: what DP-AdamBC takes for a second moment that is no larger than noise explains."""


EPS = 1e-8
"""Keeps a step finite where there is neither signal nor noise."""


class NoisedGradient(NamedTuple):
    """What the mechanism released of a step.

    Args:
        vector: over the trainable parameters.
        noise_std: standard deviation of the noise in each of its values, a public number.
    """

    vector: Float[Tensor, " parameters"]
    noise_std: float


class DPAdamBC(torch.optim.Optimizer):
    """Adam whose second moments leave out what the noise put into them, with decoupled weight decay.

    Plain Adam divides by the root of a second moment that is mostly the noise's, the same for every parameter, and so
    turns into SGD with momentum. A second moment that is no larger than noise explains counts as `FLOOR` of the
    noise's variance, so no step is longer than the gradient's over a third of the noise.

    Source: Tang et al. 2023, "DP-AdamBC: your DP-Adam is actually DP-SGD (unless you apply bias correction)",
    algorithm 1. The noise's variance may differ between steps; its moving average is taken with the same weights.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "weight_decay": weight_decay, "betas": betas})
        self.noise_std = 0.0
        self._steps, self._variance = 0, 0.0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move along `.grad`, whose values carry noise of standard deviation `noise_std`."""
        self._steps += 1
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            self._variance = beta2 * self._variance + (1 - beta2) * self.noise_std**2
            variance = self._variance / (1 - beta2**self._steps)
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                first = state.setdefault("first", torch.zeros_like(parameter)).lerp_(gradient, 1 - beta1)
                second = state.setdefault("second", torch.zeros_like(parameter)).lerp_(gradient.square(), 1 - beta2)
                signal = (second / (1 - beta2**self._steps) - variance).clamp_(min=FLOOR * variance)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(first / (1 - beta1**self._steps), signal.sqrt_().add_(EPS), value=-group["lr"])


def make_optimizer(parameters: list[nn.Parameter], plan: OptimizerPlan) -> torch.optim.Optimizer:
    """Return the optimiser that the plan names."""
    match plan.name:
        case "sgd":
            return torch.optim.SGD(parameters, plan.learning_rate, weight_decay=plan.weight_decay)
        case "adam":
            return torch.optim.AdamW(parameters, plan.learning_rate, weight_decay=plan.weight_decay)
        case "adam-bc":
            return DPAdamBC(parameters, plan.learning_rate, weight_decay=plan.weight_decay)


def take_step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], noised: NoisedGradient) -> None:
    """Move the parameters by one step along a noised gradient."""
    parts = torch.split(noised.vector, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.reshape(parameter.shape).to(parameter)
    if isinstance(optimizer, DPAdamBC):
        optimizer.noise_std = noised.noise_std
    optimizer.step()
