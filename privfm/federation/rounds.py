"""A round as the coordinator plays it; the same under every engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from privfm.federation.announcement import Announcement
from privfm.federation.engines import Engine
from privfm.federation.planning import mechanism_of, update_weight
from privfm.ids import HospitalId
from privfm.plan import Plan
from privfm.secagg import RoundSpec, Stage, dequantise, server

__all__ = ["SecureSum", "average_loss", "average_update", "play_round"]


@dataclass(frozen=True)
class SecureSum:
    """The unmasked sum of a round.

    Args:
        total: sum of the survivors' weighted updates.
        cohort: hospitals that advertised keys.
        survivors: hospitals in the sum.
        transcript: 32-byte hash that every survivor has too.
        bytes_up: most bytes that one hospital sent.
        mask_keys: the public key, 32 bytes, that each hospital advertised to mask with.
        loss: sum of the survivors' weighted, noised mean losses, where the plan shows it.
    """

    total: Float[np.ndarray, " parameters"]
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    transcript: bytes
    bytes_up: int
    mask_keys: Mapping[str, bytes]
    loss: float | None = None


def play_round(spec: RoundSpec, announcement: Announcement, engine: Engine, entropy: bytes) -> SecureSum:
    """Return the sum of a round, all five stages of it.

    Args:
        spec: what coordinator and hospitals agree on.
        announcement: of the round.
        engine: carries the messages.
        entropy: 32 fresh bytes from the operating system.

    Raises:
        ProtocolError: fewer hospitals than the threshold finished a stage; names those at fault.
    """
    sent: dict[str, int] = dict.fromkeys(spec.cohort, 0)

    def exchange(stage: Stage, outgoing: dict[str, bytes]) -> dict[str, bytes]:
        answers = dict(engine.exchange(stage, outgoing))
        for name, answer in answers.items():
            sent[name] += len(answer)
        return answers

    message = announcement.encode()
    advertisements = exchange(Stage.ADVERTISE, dict.fromkeys(spec.cohort, message))
    advertised, packages = server.advertise(spec, advertisements, entropy=entropy)
    shared, deliveries = server.share(advertised, exchange(Stage.SHARE, packages))
    summing = server.MaskedSum(shared)
    for name, answer in engine.exchange(Stage.MASK, deliveries):
        sent[name] += len(answer)
        summing.add(name, answer)
    masked, survivors = summing.close()
    agreed, signatures = server.agree(masked, exchange(Stage.AGREE, survivors))
    outcome = server.unmask(agreed, exchange(Stage.UNMASK, signatures))
    return SecureSum(
        total=dequantise(outcome.sums[0], spec.vectors[0]),
        cohort=tuple(packages),
        survivors=outcome.survivors,
        transcript=outcome.transcript,
        bytes_up=max(sent.values()),
        mask_keys={name: package.mask_key for name, package in shared.packages.items()},
        loss=None if len(spec.vectors) == 1 else float(dequantise(outcome.sums[1], spec.vectors[1])[0]),
    )


def average_update(plan: Plan, secure: SecureSum) -> Float[Tensor, " parameters"]:
    """Return the sum over the survivors' public weights: McMahan et al. 2017 with declared instead of true counts."""
    return torch.from_numpy(secure.total / _weight(plan, secure)).float()


def average_loss(plan: Plan, secure: SecureSum) -> tuple[float, float] | None:
    """Return the survivors' noised mean loss, weighted as their updates are, and the standard deviation of its noise.

    None where the plan does not show it.
    """
    bound = plan.shown_loss_bound
    if secure.loss is None or bound is None:
        return None
    hospitals = [plan.hospital(HospitalId(name)) for name in secure.survivors]
    stds = [update_weight(plan, hospital) * mechanism_of(plan, hospital).mean_std(bound) for hospital in hospitals]
    weight = _weight(plan, secure)
    return secure.loss / weight, math.hypot(*stds) / weight


def _weight(plan: Plan, secure: SecureSum) -> float:
    return sum(update_weight(plan, plan.hospital(HospitalId(name))) for name in secure.survivors)
