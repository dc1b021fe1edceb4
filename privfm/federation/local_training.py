"""A hospital's noisy steps within a round: from the global model to an update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from privfm.federation.network import trained, write_trained
from privfm.plan import OptimizerPlan

__all__ = ["NoisedGradient", "train_locally"]

NoisedGradient = Callable[[int], Tensor]
"""Returns the noised gradient of a step, a vector over the trainable parameters, at the network's weights."""


def train_locally(
    network: nn.Module,
    start: Float[Tensor, " parameters"],
    plan: OptimizerPlan,
    steps: int,
    noised_gradient: NoisedGradient,
) -> Float[Tensor, " parameters"]:
    """Return the update: weights after `steps` noised steps minus `start`. Afterwards `network` holds the former.

    The optimiser sees noised gradients only, so all it does is post-processing. It starts anew every round.
    """
    write_trained(network, start)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = _make_optimizer(parameters, plan)
    for step in range(steps):
        _set_gradient(parameters, noised_gradient(step))
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return trained(network) - start


def _make_optimizer(parameters: list[nn.Parameter], plan: OptimizerPlan) -> torch.optim.Optimizer:
    match plan.name:
        case "sgd":
            return torch.optim.SGD(parameters, plan.learning_rate, weight_decay=plan.weight_decay)
        case "adam":
            return torch.optim.AdamW(parameters, plan.learning_rate, weight_decay=plan.weight_decay)


def _set_gradient(parameters: list[nn.Parameter], gradient: Float[Tensor, " parameters"]) -> None:
    start = 0
    for parameter in parameters:
        part = gradient[start : start + parameter.numel()]
        parameter.grad = part.reshape(parameter.shape).to(parameter)
        start += parameter.numel()
