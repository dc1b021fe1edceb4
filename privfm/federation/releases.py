"""What a hospital computes of its images: nothing leaves this file that was not clipped and noised."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from privfm.dp.clipping import ClippingEngine, check_clippable
from privfm.dp.coins import Coins
from privfm.dp.mechanism import StepMechanism
from privfm.federation.local_training import train_locally
from privfm.federation.network import Learner, write_trained
from privfm.federation.notebook import Notebook
from privfm.federation.optimizers import NoisedGradient
from privfm.federation.unit_batches import UnitBatch, Units
from privfm.plan import Plan

__all__ = ["Releases"]


@dataclass
class Releases:
    """One hospital's mechanism at work.

    Args:
        plan: the run's plan.
        mechanism: this hospital's; where its clip norm adapts, it goes on from what the notebook kept.
        units: its images, grouped by privacy unit.
        learner: its own copy of the network.
        coins: its secret randomness.
        notebook: its own files; losses and counts go there and nowhere else.
    """

    plan: Plan
    mechanism: StepMechanism
    units: Units
    learner: Learner
    coins: Coins
    notebook: Notebook

    def __post_init__(self) -> None:
        adapted = self.notebook.clip_norm()
        if self.mechanism.adaptive is not None and adapted is not None:
            self.mechanism = replace(self.mechanism, clip_norm=adapted)
        self.learner.network.train()
        self.notebook.note(units=len(self.units), nominal_units=self.mechanism.nominal_units)
        self._check_network()

    def _check_network(self) -> None:
        """Raise ModelError when the network cannot be clipped: found out on random pixels, never on patients."""
        network, objective, plan = self.learner
        rng, data = np.random.default_rng(0), plan.data
        pixels = rng.standard_normal((2, 2, data.channels, data.image_size, data.image_size), dtype=np.float32)
        views = torch.from_numpy(pixels).to(next(network.parameters()).device)

        def unit_losses() -> Tensor:
            return objective.unit_losses(network, views, [np.random.default_rng(unit) for unit in range(2)])

        check_clippable(network, unit_losses, 2)

    def of_round(self, start: Float[Tensor, " parameters"], number: int, attempt: int) -> list[Float[Tensor, " _"]]:
        """Return a round's update from the global model, and the noised loss where the plan shows it.

        Preconditions: the ledger has charged `plan.steps_per_round` steps for this attempt.
        """
        bound = self.plan.shown_loss_bound
        shown = [] if bound is None else [self._loss(start, bound, (number, attempt))]
        update = train_locally(
            self.learner.network,
            start,
            self.plan.optimizer,
            self.plan.federation.local_steps,
            lambda step: self.gradient((number, attempt, step)),
        )
        if self.mechanism.adaptive is not None:
            self.notebook.keep_clip_norm(self.mechanism.clip_norm)
        return [update, *shown]

    @torch.no_grad()
    def _loss(self, start: Float[Tensor, " parameters"], bound: float, attempt: tuple[int, int]) -> Float[Tensor, " 1"]:
        """Return the noised mean loss of a draw of units of its own on the model of the round's start."""
        network, objective, _ = self.learner
        write_trained(network, start)
        drawn = self.mechanism.draw(len(self.units), self.coins.stream("loss draw", *attempt))
        losses: list[float] = []
        for batch in self.units.batches(drawn, lambda unit: self.coins.stream("loss unit", *attempt, unit).generator()):
            losses += objective.unit_losses(network, batch.views, batch.rngs)[: batch.count].tolist()
        noised = self.mechanism.release_mean(losses, bound, self.coins.stream("loss noise", *attempt))
        return torch.tensor([noised], dtype=torch.float32)

    def gradient(self, step: tuple[int, int, int]) -> NoisedGradient:
        """Return what the mechanism releases of one step: Poisson draw, clipped sum over the drawn units, noise.

        An adaptive clip norm then moves on, for the next step.
        """
        network, objective, _ = self.learner
        mechanism, precision = self.mechanism, getattr(torch, self.plan.performance.precision)
        engine = ClippingEngine(network, mechanism.clip_norm, precision)
        drawn = mechanism.draw(len(self.units), self.coins.stream("draw", *step))
        losses: list[float] = []
        for batch in self.units.batches(drawn, lambda unit: self.coins.stream("unit", *step, unit).generator()):

            def unit_losses(batch: UnitBatch = batch) -> Tensor:
                values = objective.unit_losses(network, batch.views, batch.rngs)
                losses.extend(values[: batch.count].detach().tolist())
                return values

            engine.add(unit_losses, len(batch), batch.count)
        mean_loss = sum(losses) / len(losses) if losses else None
        self.notebook.note(round=step[0], attempt=step[1], step=step[2], drawn=len(drawn), loss=mean_loss)
        clipped = engine.finish()
        released = mechanism.release(clipped, self.coins.stream("noise", *step))
        self.mechanism = mechanism.adapted(clipped, self.coins.stream("count", *step))
        return NoisedGradient(released, mechanism.noise_std)
