"""The noise-only control: the run's own noise, steps and optimisers on zero gradients.

Noise alone can lift a random backbone's probe, so a run's claim of having learnt is measured against this.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import Coins, Stream, SystemCoins
from privfm.dp.mechanism import StepMechanism
from privfm.federation.local_training import train_locally
from privfm.federation.network import Learner, trained
from privfm.federation.observer import Observer
from privfm.federation.optimizers import NoisedGradient
from privfm.federation.planning import mechanism_of, update_weight, vector_spec
from privfm.federation.strategies import make_strategy
from privfm.plan import Plan
from privfm.secagg import dequantise, quantise

__all__ = ["noise_only"]


def noise_only(
    plan: Plan, start: Learner, observer: Observer, coins: Coins | None = None
) -> Float[Tensor, " parameters"]:
    """Return the global model that the run would have ended with, had every gradient been zero.

    No image is touched, so nothing is charged. Updates are clamped and rounded as the run's are; nothing is masked,
    since a sum of masked vectors is their sum.
    """
    coins = coins or SystemCoins()
    network = copy.deepcopy(start.network).cpu()
    strategy, model = make_strategy(plan.federation), trained(network)
    total = sum(update_weight(plan, hospital) for hospital in plan.hospitals)
    for number in range(1, plan.federation.rounds + 1):
        summed = torch.zeros_like(model)
        for hospital in plan.hospitals:
            gradient = _NoiseGradient(mechanism_of(plan, hospital), model.numel(), coins, (hospital.id, number))
            update = train_locally(network, model, plan.optimizer, plan.federation.local_steps, gradient)
            summed += _quantised(
                plan, update_weight(plan, hospital) * update, coins.stream("control", hospital.id, number)
            )
        model = strategy.step(model, summed / total)
        observer.progress("noise-only control", number, plan.federation.rounds)
    return model


def _quantised(plan: Plan, update: Float[Tensor, " parameters"], stream: Stream) -> Float[Tensor, " parameters"]:
    spec = vector_spec(plan, update.numel())
    return torch.from_numpy(dequantise(quantise(update.numpy(), spec, stream.read(32)), spec)).float()


class _NoiseGradient:
    """The release of a sum in which nobody took part; an adaptive clip norm stays where it starts."""

    def __init__(self, mechanism: StepMechanism, parameters: int, coins: Coins, label: tuple[str, int]) -> None:
        self._mechanism = mechanism
        self._zero = ClippedSum(torch.zeros(parameters), mechanism.clip_norm)
        self._coins = coins
        self._label = label

    def __call__(self, step: int) -> NoisedGradient:
        noised = self._mechanism.release(self._zero, self._coins.stream("control", *self._label, step))
        return NoisedGradient(noised, self._mechanism.noise_std)
