"""A hospital on a test bench: its real mechanism on made-up units whose gradients are known."""

from __future__ import annotations

import math
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

    @property
    def rate(self) -> float:
        """The declared chance of a unit to be drawn."""
        return self.plan.sample_rate(self.hospital)

    @property
    def expected_units(self) -> float:
        """What the plan's numbers divide a sum by."""
        return self.rate * self.hospital.nominal_units

    def noise_std(self, clip_norm: float | None = None) -> float:
        """Of the noise in one value of a gradient, from the plan's numbers and not from the mechanism that is tested.

        Args:
            clip_norm: where it adapted; the plan's by default.
        """
        noise, clip_norm = self.noise_multiplier, clip_norm or self.mechanism.clip_norm
        if self.plan.privacy.clip_quantile is not None:  # a count is released beside (Andrew et al. 2021, theorem 1)
            noise = (noise**-2 - (2 * self.count_noise) ** -2) ** -0.5
        return noise * clip_norm / self.expected_units

    @property
    def noise_multiplier(self) -> float:
        """As the plan has it."""
        if self.hospital.noise_multiplier is None:
            raise ValueError("the plan is not complete")
        return self.hospital.noise_multiplier

    @property
    def count_noise(self) -> float:
        """Standard deviation of the noise on an adaptive clip norm's count, whose sensitivity is 1/2."""
        return max(self.expected_units / 20, self.noise_multiplier)

    def with_steps(self, local_steps: int) -> Bench:
        """The same hospital under a plan with so many local steps."""
        federation = self.plan.federation.model_copy(update={"local_steps": local_steps})
        return Bench(self.plan.model_copy(update={"federation": federation}), self.hospital)

    def units_for(self, drawn: float) -> int:
        """How many units there must be for so many to be drawn, on average."""
        return math.ceil(drawn / self.rate)

    def label_drawing(self, units: int, wanted: Callable[[set[int]], bool]) -> tuple[str, set[int]]:
        """A label of coins, and whom they draw in step (1, 0, 0): whom is wanted, if one of many labels does so."""
        for trial in range(math.ceil(40 / self.rate)):
            label = f"bench {trial}"
            stream = InjectedCoins(label.encode()).stream("draw", 1, 0, 0)
            drawn = set(self.mechanism.draw(units, stream).tolist())
            if wanted(drawn):
                break
        return label, drawn

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
        count = len(rows) if units is None else units
        return self.releases_of(Dial(calls), _Known(rows, calls, inputs), count, coins, micro_batch=micro_batch)

    def releases_of(
        self, network: nn.Module, objective: Any, units: int, coins: Coins, *, micro_batch: int = 3
    ) -> Releases:
        """The same of any network and objective, whose views of a unit are its number."""
        learner = Learner(cast(Any, network), objective, self.plan)
        source = KnownUnits(units, micro_batch)
        return Releases(self.plan, self.mechanism, source, learner, coins, _Silent(Path()))


class _Silent(Notebook):
    """Keeps nothing: there is nobody on the bench."""

    def note(self, **facts: Any) -> None:
        pass

    def keep_clip_norm(self, clip_norm: float) -> None:
        pass

    def clip_norm(self) -> None:
        return None
