"""A hospital's noisy steps within a round: from the global model to an update."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from privfm.federation.network import trained, write_trained
from privfm.federation.optimizers import NoisedGradient, make_optimizer, take_step
from privfm.plan import OptimizerPlan

__all__ = ["train_locally"]


def train_locally(
    network: nn.Module,
    start: Float[Tensor, " parameters"],
    plan: OptimizerPlan,
    steps: int,
    noised_gradient: Callable[[int], NoisedGradient],
) -> Float[Tensor, " parameters"]:
    """Return the update: weights after `steps` noised steps minus `start`. Afterwards `network` holds the former.

    The optimiser starts anew every round.

    Args:
        noised_gradient: of a step, at the network's weights.
    """
    write_trained(network, start)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, plan)
    for step in range(steps):
        take_step(optimizer, parameters, noised_gradient(step))
    for parameter in parameters:
        parameter.grad = None
    return trained(network) - start
