"""How the averaged update becomes the next global model. All of it is post-processing of noised, summed updates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from privfm.plan import FederationPlan

__all__ = ["FedAdam", "FedAvg", "FedAvgM", "Strategy", "make_strategy"]


@runtime_checkable
class Strategy(Protocol):
    """A server optimiser."""

    def step(
        self, model: Float[Tensor, " parameters"], update: Float[Tensor, " parameters"]
    ) -> Float[Tensor, " parameters"]:
        """Return the next global model from the current one and the averaged update."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        ...


@dataclass
class FedAvg:
    """The average itself, scaled.  Source: McMahan et al. 2017, algorithm 1."""

    learning_rate: float

    def step(
        self, model: Float[Tensor, " parameters"], update: Float[Tensor, " parameters"]
    ) -> Float[Tensor, " parameters"]:
        return model + self.learning_rate * update

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        pass


@dataclass
class FedAvgM:
    """The average with momentum.  Source: Hsu et al. 2019, equation 1."""

    learning_rate: float
    momentum: float
    velocity: Tensor | None = None

    def step(
        self, model: Float[Tensor, " parameters"], update: Float[Tensor, " parameters"]
    ) -> Float[Tensor, " parameters"]:
        self.velocity = update if self.velocity is None else self.momentum * self.velocity + update
        return model + self.learning_rate * self.velocity

    def state(self) -> dict[str, Tensor]:
        return {} if self.velocity is None else {"velocity": self.velocity}

    def load(self, state: dict[str, Tensor]) -> None:
        self.velocity = state.get("velocity")


@dataclass
class FedAdam:
    """Adam on the averaged update, with bias correction.  Source: Reddi et al. 2021, algorithm 2."""

    learning_rate: float
    beta1: float
    beta2: float = 0.99
    tau: float = 1e-8
    moments: dict[str, Tensor] = field(default_factory=dict)

    def step(
        self, model: Float[Tensor, " parameters"], update: Float[Tensor, " parameters"]
    ) -> Float[Tensor, " parameters"]:
        zero = torch.zeros_like(update)
        steps = self.moments.get("steps", torch.zeros(())) + 1
        first = self.beta1 * self.moments.get("first", zero) + (1 - self.beta1) * update
        second = self.beta2 * self.moments.get("second", zero) + (1 - self.beta2) * update.square()
        self.moments = {"steps": steps, "first": first, "second": second}
        scale = (second / (1 - self.beta2**steps)).sqrt() + self.tau
        return model + self.learning_rate * (first / (1 - self.beta1**steps)) / scale

    def state(self) -> dict[str, Tensor]:
        return dict(self.moments)

    def load(self, state: dict[str, Tensor]) -> None:
        self.moments = dict(state)


def make_strategy(plan: FederationPlan) -> Strategy:
    """Return the strategy that the plan names."""
    match plan.strategy:
        case "fedavg":
            return FedAvg(plan.server_learning_rate)
        case "fedavgm":
            return FedAvgM(plan.server_learning_rate, plan.server_momentum)
        case "fedadam":
            return FedAdam(plan.server_learning_rate, plan.server_momentum)
