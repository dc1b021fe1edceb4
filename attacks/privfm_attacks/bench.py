"""A hospital on a test bench: its real mechanism on made-up units whose gradients are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from privfm.dp.coins import Coins, InjectedCoins
from privfm.federation.network import Learner
from privfm.federation.notebook import Notebook
from privfm.federation.planning import mechanism_of
from privfm.federation.releases import Releases
from privfm.federation.unit_batches import UnitBatch
from privfm.plan import HospitalPlan, Plan

__all__ = ["INPUTS", "OUTPUTS", "Bench", "Dial", "KnownUnits", "distinct_hospitals", "orthonormal"]

INPUTS, OUTPUTS = 64, 192
"""Of the one layer on the bench: 12,288 numbers, enough to tell noise from noise at half the variance."""


class Dial(nn.Module):
    """One layer, called once or twice for every view."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.calls = calls

    def forward(self, values: Tensor) -> Tensor:
        return torch.stack([self.layer(values) for _ in range(self.calls)]).sum(dim=0)


class KnownUnits:
    """Units by number, in micro-batches filled up to one size as a hospital's are; remembers who was drawn.

    Args:
        count: how many units there are.
        micro_batch: units at a time.
    """

    def __init__(self, count: int, micro_batch: int) -> None:
        self.count, self.micro_batch = count, micro_batch
        self.drawn: list[Int64[np.ndarray, " drawn"]] = []

    def __len__(self) -> int:
        return self.count

    def batches(
        self, units: Int64[np.ndarray, " drawn"], generator_of: Callable[[str], np.random.Generator]
    ) -> Iterator[UnitBatch]:
        self.drawn.append(units)
        for start in range(0, len(units), self.micro_batch):
            chosen = units[start : start + self.micro_batch]
            views = torch.from_numpy(chosen).float().reshape(-1, 1, 1, 1, 1)
            yield UnitBatch.filled_up(views, [generator_of(f"unit {unit}") for unit in chosen], self.micro_batch)


class _Known:
    """A loss for each unit whose gradient is known, whatever the weights are: a row of a table times an input."""

    def __init__(
        self, rows: Float[Tensor, "units outputs"], calls: int, inputs: Float[Tensor, "units inputs"] | None
    ) -> None:
        self.rows, self.calls, self.inputs = rows, calls, inputs

    def unit_losses(
        self, network: nn.Module, views: Tensor, rngs: list[np.random.Generator]
    ) -> Float[Tensor, " units"]:
        places = views.flatten(1)[:, 0].abs().long() % max(1, len(self.rows))
        given = network(self._inputs(places))
        losses: Tensor = (given * self.rows[places]).sum(dim=1) / self.calls
        return losses

    def _inputs(self, places: Int64[Tensor, " units"]) -> Float[Tensor, "units inputs"]:
        return torch.full((len(places), INPUTS), INPUTS**-0.5) if self.inputs is None else self.inputs[places]


def orthonormal(
    places: Int64[Tensor, " units"],
) -> tuple[Float[Tensor, "units outputs"], Float[Tensor, "units inputs"]]:
    """Rows and inputs of units each of which pulls one weight alone, the one at its place."""
    rows, inputs = (
        functional.one_hot(part, size) for part, size in ((places // INPUTS, OUTPUTS), (places % INPUTS, INPUTS))
    )
    return rows.float(), inputs.float()


def distinct_hospitals(plan: Plan) -> tuple[HospitalPlan, ...]:
    """One hospital for each mechanism of a plan: those with equal numbers run the same."""
    return tuple({mechanism_of(plan, hospital): hospital for hospital in plan.hospitals}.values())


class Bench:
    """A hospital's `Releases`, of its plan's own mechanism, on units that pull the weights in known directions.

    Args:
        plan: complete.
        hospital: whose public numbers.
    """

    def __init__(self, plan: Plan, hospital: HospitalPlan) -> None:
        self.plan, self.hospital = plan, hospital
        self.mechanism = mechanism_of(plan, hospital)

    def clipped(self, row: Float[Tensor, " outputs"]) -> Float[Tensor, " parameters"]:
        """What a unit may add to a sum: its gradient, scaled down to the clip norm; nothing if it is not finite."""
        if not bool(torch.isfinite(row).all()):
            return torch.zeros(OUTPUTS * INPUTS)
        gradient = torch.outer(row, torch.full((INPUTS,), INPUTS**-0.5)).flatten()
        return gradient * min(1.0, self.mechanism.clip_norm / max(float(gradient.norm()), 1e-30))

    def releases(
        self,
        rows: Tensor,
        coins: Coins,
        *,
        units: int | None = None,
        calls: int = 1,
        micro_batch: int = 3,
        inputs: Float[Tensor, "units inputs"] | None = None,
    ) -> Releases:
        """The real thing, on `units` units (as many as rows by default).

        Args:
            inputs: what the layer sees of each unit, whose gradient is the product of the two; all alike by default.
        """
        source = KnownUnits(len(rows) if units is None else units, micro_batch)
        learner = Learner(cast(Any, Dial(calls)), cast(Any, _Known(rows, calls, inputs)), self.plan)
        return Releases(self.plan, self.mechanism, source, learner, coins, _Silent(Path()))

    def gradient(self, rows: Tensor, label: str = "bench", *, units: int | None = None, calls: int = 1) -> Tensor:
        """A step's released gradient under coins that a second call repeats."""
        return self.releases(rows, InjectedCoins(label.encode()), units=units, calls=calls).gradient((1, 0, 0)).vector


class _Silent(Notebook):
    """Keeps nothing: there is nobody on the bench."""

    def note(self, **facts: Any) -> None:
        pass

    def keep_clip_norm(self, clip_norm: float) -> None:
        pass

    def clip_norm(self) -> None:
        return None
