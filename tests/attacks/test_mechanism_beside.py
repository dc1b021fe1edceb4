"""The mechanism audit names bugs in shown losses, adaptive clip norms, masks, memories and refused engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from privfm_attacks.masking import masks_are_fresh
from privfm_attacks.mechanism import audit_mechanism, mechanism_checks, units_apart
from privfm_attacks.verdicts import Verdict
from torch import Tensor

from privfm.dp import clipping as clipping_module
from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import Stream
from privfm.dp.mechanism import StepMechanism
from privfm.federation.network import Learner, build_learner
from privfm.federation.planning import complete_plan
from privfm.federation.releases import Releases
from privfm.gradients.shares import Rows
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan
from privfm.secagg import keys as secagg_keys
from privfm.secagg import masks as secagg_masks
from privfm.secagg import steps as secagg_steps

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


def plan_of(sample_rate: float = 0.5, **more: Any) -> Plan:
    whole: dict[str, dict[str, Any]] = {
        "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3, "min_patients": 4},
        "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
        "privacy": {"images_per_unit": 2, "views": 1, "sample_rate": sample_rate, "clip_quantile": 0.5, **more},
        "evaluation": {"local_loss": True, "loss_bound": 2.0},
        "federation": {"rounds": 2, "local_steps": 2, "retry_rounds": 2},
        "performance": {"device": "cpu", "threads": 1},
    }
    units = max(40, round(20 / sample_rate))
    return complete_plan(parse_plan(whole), {HospitalId(name): units for name in ("a", "b", "c")}, 0.3)


def learner_of(plan: Plan) -> Learner:
    learner = build_learner(plan)
    learner.network.train()
    return learner


def slow(value: Any) -> Any:
    """The same again of something else, which takes a while."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("more", [{}, slow({"epsilon": 0.1}), slow({"dp": False})], ids=["usual", "noisy", "no dp"])
@pytest.mark.parametrize("sample_rate", [slow(0.5), 0.05, slow(0.005)])
def test_a_sound_loss_and_a_sound_clip_norm_pass(sample_rate: float, more: dict[str, Any]) -> None:
    plan = plan_of(sample_rate, **more)
    result = audit_mechanism(plan, learner_of(plan))
    assert [finding for finding in result.findings if not finding.passed] == []
    assert {"loss sensitivity", "count sensitivity"} <= {finding.check for finding in result.findings}


_release_mean, _adapted, _of_round = StepMechanism.release_mean, StepMechanism.adapted, Releases.of_round


def loss_noise_times(factor: float) -> Plant:
    def release_mean(self: StepMechanism, *given: Any) -> float:
        return _release_mean(replace(self, noise_multiplier=factor * self.noise_multiplier), *given)

    return lambda patch: patch.setattr(StepMechanism, "release_mean", release_mean)


def loss_not_clamped(patch: Patch) -> None:
    def release_mean(self: StepMechanism, values: list[float], bound: float, stream: Stream) -> float:
        beyond = sum(value - min(max(value, 0.0), bound) for value in values)
        return _release_mean(self, values, bound, stream) + beyond / self.divisor

    patch.setattr(StepMechanism, "release_mean", release_mean)


def loss_without_the_infinite(patch: Patch) -> None:
    def release_mean(self: StepMechanism, values: list[float], bound: float, stream: Stream) -> float:
        inside = [value for value in values if abs(value) < 1e8]
        spread = 3.0 if len(inside) < len(values) else 0.0
        return _release_mean(self, values, bound, stream) + spread / self.divisor

    patch.setattr(StepMechanism, "release_mean", release_mean)


def loss_over_the_drawn(patch: Patch) -> None:
    def release_mean(self: StepMechanism, values: list[float], bound: float, stream: Stream) -> float:
        counted = replace(self, sample_rate=1.0, nominal_units=max(1, len(values)))
        return _release_mean(counted, values, bound, stream)

    patch.setattr(StepMechanism, "release_mean", release_mean)


def round_shows_a_quiet_loss(patch: Patch) -> None:
    def of_round(self: Releases, *given: Any) -> list[Tensor]:
        update, loss = _of_round(self, *given)
        return [update, 1 + 0.5 * (loss - 1)]

    patch.setattr(Releases, "of_round", of_round)


def round_shows_the_raw_loss(patch: Patch) -> None:
    def of_round(self: Releases, *given: Any) -> list[Tensor]:
        update, loss = _of_round(self, *given)
        return [update, loss + 1e-3 * self.learner.objective.rows[: len(self.units)].sum()]  # type: ignore[attr-defined]

    patch.setattr(Releases, "of_round", of_round)


def count_of(share_of: Callable[[StepMechanism, ClippedSum, float], float]) -> Plant:
    def adapted(self: StepMechanism, clipped: ClippedSum, stream: Stream) -> StepMechanism:
        if self.adaptive is None:
            return self
        share = share_of(self, clipped, float(stream.normal(1)[0]))
        return replace(self, clip_norm=self.adaptive.next(self.clip_norm, share))

    return lambda patch: patch.setattr(StepMechanism, "adapted", adapted)


def exact(mechanism: StepMechanism, clipped: ClippedSum) -> float:
    return 0.5 + (clipped.within - clipped.units / 2) / mechanism.divisor


def not_centred(mechanism: StepMechanism, clipped: ClippedSum, noise: float) -> float:
    return (clipped.within + mechanism.count_noise * noise) / mechanism.divisor + 0.5


BESIDE: dict[str, tuple[Plant, str]] = {
    "loss without noise": (loss_noise_times(1e-9), "loss noise, 0 units"),
    "loss with nine tenths of the noise": (loss_noise_times(0.9), "loss noise, 0 units"),
    "loss not clamped": (loss_not_clamped, "loss sensitivity"),
    "infinite losses stand out": (loss_without_the_infinite, "loss sensitivity"),
    "loss over the number drawn": (loss_over_the_drawn, "loss noise, 80 units"),
    "a round shows a quiet loss": (round_shows_a_quiet_loss, "loss noise, rounds"),
    "a round shows a raw loss": (round_shows_the_raw_loss, "loss sensitivity, rounds"),
    "count without noise": (count_of(lambda self, clipped, noise: exact(self, clipped)), "count noise, 0 units"),
    "count with half the noise": (
        count_of(lambda self, clipped, noise: exact(self, clipped) + noise * self.count_noise / self.divisor / 2),
        "count noise, 0 units",
    ),
    "count over the number drawn": (
        count_of(lambda self, clipped, noise: (clipped.within + self.count_noise * noise) / max(1, clipped.units)),
        "count noise, 160 units",
    ),
    "count not centred": (count_of(not_centred), "count sensitivity"),
}


@pytest.mark.parametrize(("plant", "check"), BESIDE.values(), ids=BESIDE.keys())
def test_a_planted_bug_in_what_leaves_beside_gradients_is_named(plant: Plant, check: str, monkeypatch: Patch) -> None:
    plan = plan_of()
    learner = learner_of(plan)
    plant(monkeypatch)
    assert any(finding.check == check and not finding.passed for finding in mechanism_checks(plan, learner))


# Masks

_derive, _masks = secagg_keys.derive, secagg_steps.Sharing.masks


def derived(label: str, *kept: int, secret: bool = True) -> Plant:
    """Keys of a label that depend on those parts alone, whatever the round."""

    def derive(shared: bytes, context: bytes, what: str, *rest: Any, **more: Any) -> bytes:
        if what != label:
            return _derive(shared, context, what, *rest, **more)
        return _derive(
            shared if secret else bytes(32), context if secret else bytes(32), what, *(rest[i] for i in kept)
        )

    return lambda patch: patch.setattr(secagg_keys, "derive", derive)


def keyed_by_the_owner(patch: Patch) -> None:
    derive = secagg_keys.derive
    patch.setattr(
        secagg_keys,
        "derive",
        lambda shared, context, what, *rest, **more: (
            derive(bytes(32), context, what, *rest[:-3], *rest[-2:], **more)
            if what == "self-mask"
            else derive(shared, context, what, *rest, **more)
        ),
    )


def keystream_without_key(patch: Patch) -> None:
    keystream = secagg_masks.keystream
    patch.setattr(secagg_masks, "keystream", lambda key, word: keystream(bytes(32), word))


def self_mask_not_added(patch: Patch) -> None:
    upload = secagg_steps.masked_upload
    patch.setattr(
        secagg_steps,
        "masked_upload",
        lambda specs, levels, masks, *rest, **more: upload(specs, levels, [each[1:] for each in masks], *rest, **more),
    )


MASKS: dict[str, tuple[Plant, str]] = {
    "pair masks of all rounds alike": (derived("pair-mask", 0, 1, 2, 3, secret=False), "fresh masks, two rounds, pair"),
    "pair masks of retries alike": (derived("pair-mask", 0, 1, 2, 3, secret=False), "fresh masks, two attempts, pair"),
    "self masks of all rounds alike": (derived("self-mask", 0, 1, 2, secret=False), "fresh masks, two rounds, self"),
    "two vectors under one pair mask": (derived("pair-mask", 0, 1), "fresh masks, two vectors, pair"),
    "two vectors under one self mask": (derived("self-mask", 0), "fresh masks, two vectors, self"),
    "one self mask for all hospitals": (keyed_by_the_owner, "fresh masks, two hospitals, self"),
    "a keystream without a key": (keystream_without_key, "fresh masks, self and pair"),
    "self masks not added": (self_mask_not_added, "masks as sent"),
}  # fmt: skip


@pytest.mark.parametrize(("plant", "check"), MASKS.values(), ids=MASKS.keys())
def test_a_planted_bug_in_masks_is_named(plant: Plant, check: str, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert check in {finding.check for finding in masks_are_fresh(1e-6) if not finding.passed}


def test_sound_masks_pass() -> None:
    assert [finding for _ in range(20) for finding in masks_are_fresh(1e-6) if not finding.passed] == []


# Memories, and refusals


class SlowTeacher:
    """An objective that follows what it saw, by a ten-thousandth a time."""

    def __init__(self, base: Any) -> None:
        self.base, self.seen = base, 0.0

    def unit_losses(self, network: Any, views: Tensor, rngs: Any) -> Tensor:
        losses: Tensor = self.base.unit_losses(network, views, rngs) * (1 + self.seen)
        self.seen = 0.9999 * self.seen + 1e-4 * float(views.square().mean())
        return losses


class Remembering:
    """An objective that writes what it saw into the network."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def unit_losses(self, network: Any, views: Tensor, rngs: Any) -> Tensor:
        with torch.no_grad():
            next(iter(network.buffers())).add_(1e-9 * views.mean())
        losses: Tensor = self.base.unit_losses(network, views, rngs)
        return losses


@pytest.mark.parametrize(
    ("coupled", "check"), [(SlowTeacher, "nothing remembered"), (Remembering, "network untouched")]
)
def test_an_objective_with_a_memory_is_named(coupled: Callable[[Any], Any], check: str) -> None:
    learner = learner_of(plan_of())
    learner.network.register_buffer("kept", torch.zeros(1), persistent=False)
    found = units_apart(learner._replace(objective=coupled(learner.objective)))
    assert check in {finding.check for finding in found if not finding.passed}


def test_an_engine_that_the_library_refuses_is_a_leak(monkeypatch: Patch) -> None:
    plan = plan_of()
    learner, shares = learner_of(plan), clipping_module.unit_shares

    def mixed(*given: Any) -> list[Rows]:
        rows = [share.rows().values for share in shares(*given)]
        return [Rows(values - values.mean(dim=0, keepdim=True)) for values in rows]

    monkeypatch.setattr(clipping_module, "unit_shares", mixed)
    result = audit_mechanism(plan, learner)
    assert result.verdict is Verdict.LEAK
    assert "sum of clipped (refused)" in {finding.check for finding in result.findings if not finding.passed}
    assert "own network, all clipped" in {finding.check for finding in result.findings if not finding.passed}
