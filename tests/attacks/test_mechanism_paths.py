"""The mechanism audit names bugs in later steps, optimisers, loaded patients, long vectors and keys."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from privfm_attacks.bench import Bench
from privfm_attacks.clip_checks import later_steps, unit_sensitivity
from privfm_attacks.masking import masks_are_fresh
from privfm_attacks.noise_checks import long_noise, noise_of_steps, own_entropy
from privfm_attacks.round_checks import charges, sampling, what_leaves
from privfm_attacks.unit_checks import units_as_loaded
from privfm_attacks.verdicts import Finding

from privfm.dp import clipping as clipping_module
from privfm.dp.clipping import ClippedSum, ClippingEngine
from privfm.dp.coins import CHUNK_PAIRS, InjectedCoins, Stream, SystemCoins
from privfm.dp.mechanism import StepMechanism
from privfm.federation import local_training as local_training_module
from privfm.federation import releases as releases_module
from privfm.federation import unit_batches as unit_batches_module
from privfm.federation.optimizers import DPAdamBC, NoisedGradient
from privfm.federation.planning import complete_plan
from privfm.federation.releases import Releases
from privfm.federation.unit_batches import UnitBatch, UnitSource
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan
from privfm.secagg import masks as masks_module

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


def plan_of(optimizer: str = "adam", **privacy: Any) -> Plan:
    whole: dict[str, dict[str, Any]] = {
        "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3, "min_patients": 4},
        "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
        "privacy": {"images_per_unit": 2, "views": 1, "sample_rate": 0.5, **privacy},
        "federation": {"rounds": 3, "local_steps": 3, "retry_rounds": 2},
        "optimizer": {"name": optimizer, "weight_decay": 0.01},
        "performance": {"device": "cpu", "threads": 1},
    }
    return complete_plan(parse_plan(whole), {HospitalId(name): 40 for name in ("a", "b", "c")}, 0.3)


def failed(findings: Iterator[Finding]) -> set[str]:
    return {finding.check for finding in findings if not finding.passed}


def on_bench(check: Callable[[Bench], Iterator[Finding]], plan: Plan | None = None) -> set[str]:
    plan = plan or plan_of()
    return failed(check(Bench(plan, plan.hospitals[0])))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "privacy", [{}, {"sample_rate": 0.05}, {"clip_quantile": 0.4}, {"sample_rate": 1.0}, {"dp": False}]
)
def test_sound_steps_pass(privacy: dict[str, Any]) -> None:
    for check in (later_steps, unit_sensitivity, noise_of_steps, what_leaves, charges):
        assert on_bench(check, plan_of(**privacy)) == set()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adam-bc"])
def test_every_optimiser_is_as_its_paper_says(optimizer: str) -> None:
    for _ in range(3):
        assert on_bench(what_leaves, plan_of(optimizer, clip_quantile=0.4)) == set()


def test_sound_units_noise_masks_and_keys_pass() -> None:
    for images in (1, 2, 4):
        assert failed(units_as_loaded(plan_of(images_per_unit=images, views=2))) == set()
    for _ in range(5):
        assert on_bench(long_noise) == set()
        assert failed(own_entropy()) == set()


# Steps

_gradient, _finish, _normal = Releases.gradient, ClippingEngine.finish, Stream._normal


def engine_in(step_of: Callable[[Releases, tuple[int, int, int]], type[ClippingEngine]]) -> Plant:
    """Another engine in each step."""

    def plant(patch: Patch) -> None:
        def gradient(self: Releases, step: tuple[int, int, int]) -> NoisedGradient:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(releases_module, "ClippingEngine", step_of(self, step))
                return _gradient(self, step)

        patch.setattr(Releases, "gradient", gradient)

    return plant


def clipping_times(factor: float) -> type[ClippingEngine]:
    class Wider(ClippingEngine):
        def __init__(self, network: Any, clip_norm: float, precision: torch.dtype) -> None:
            super().__init__(network, factor * clip_norm, precision)
            self.told = clip_norm

        def finish(self) -> ClippedSum:
            return replace(super().finish(), clip_norm=self.told)

    return Wider


def remembering(share: float, *, whole: bool) -> Plant:
    """Sums of earlier steps come again: momentum or error feedback before the noise."""

    def step_of(self: Releases, step: tuple[int, int, int]) -> type[ClippingEngine]:
        kept = self.__dict__.setdefault("kept", [])

        class Remembers(ClippingEngine):
            def finish(self) -> ClippedSum:
                done = super().finish()
                earlier = kept[-1] if kept and kept[-1].shape == done.vector.shape else torch.zeros_like(done.vector)
                vector = done.vector + share * earlier
                kept.append(vector if whole else done.vector)
                return replace(done, vector=vector)

        return Remembers

    return engine_in(step_of)


LATER: dict[str, Plant] = {
    "clipping lost from round 2 on": engine_in(lambda _, step: clipping_times(1e6 if step[0] > 1 else 1.0)),
    "clipping lost in retries": engine_in(lambda _, step: clipping_times(1e6 if step[1] else 1.0)),
    "three clip norms from step 2 on": engine_in(lambda _, step: clipping_times(3.0 if step[2] else 1.0)),
    "momentum of raw sums": remembering(0.9, whole=True),
    "error feedback": remembering(0.5, whole=False),
}


@pytest.mark.parametrize("plant", LATER.values(), ids=LATER.keys())
def test_a_bug_of_later_steps_is_named(plant: Plant, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert "clipped sum of later steps" in on_bench(later_steps)


def test_norms_that_wrap_are_named(monkeypatch: Patch) -> None:
    norms = clipping_module._norms

    def wrapped(shares: Any, least: float = 0.0) -> Any:
        found, doubtful = norms(shares, least)
        return torch.where((found > 65_504) & (found < 1e29), 0.0, found), doubtful

    monkeypatch.setattr(clipping_module, "_norms", wrapped)
    assert "sensitivity" in on_bench(unit_sensitivity)


# What optimisers are given


def left_in_grad(patch: Patch) -> None:
    """The raw sum stays in `.grad`, and steps are added to it."""

    def finish(self: ClippingEngine) -> ClippedSum:
        done = _finish(self)
        parts = torch.split(done.vector, [parameter.numel() for parameter in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.reshape(parameter.shape) / 20
        return done

    def take_step(optimizer: Any, parameters: list[Any], noised: NoisedGradient) -> None:
        parts = torch.split(noised.vector, [parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.reshape(parameter.shape) + (0 if parameter.grad is None else parameter.grad)
        if isinstance(optimizer, DPAdamBC):
            optimizer.noise_std = noised.noise_std
        optimizer.step()

    patch.setattr(ClippingEngine, "finish", finish)
    patch.setattr(local_training_module, "take_step", take_step)


def rate_by_the_count(patch: Patch) -> None:
    draw, taken, counted = StepMechanism.draw, local_training_module.take_step, [1]

    def counting(self: StepMechanism, units: int, stream: Stream) -> np.ndarray:
        drawn = draw(self, units, stream)
        counted.append(len(drawn))
        return drawn

    def take_step(optimizer: Any, parameters: list[Any], noised: NoisedGradient) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * counted[-1]
        taken(optimizer, parameters, noised)

    patch.setattr(StepMechanism, "draw", counting)
    patch.setattr(local_training_module, "take_step", take_step)


def decayed_twice(patch: Patch) -> None:
    taken = local_training_module.take_step

    def take_step(optimizer: Any, parameters: list[Any], noised: NoisedGradient) -> None:
        for group in optimizer.param_groups:
            group["weight_decay"] = 2.0
        taken(optimizer, parameters, noised)

    patch.setattr(local_training_module, "take_step", take_step)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adam-bc"])
@pytest.mark.parametrize("plant", [left_in_grad, rate_by_the_count, decayed_twice])
def test_an_update_of_more_than_the_releases_is_named(plant: Plant, optimizer: str, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert "update by the optimiser" in on_bench(what_leaves, plan_of(optimizer))


def test_noise_told_by_the_data_is_named(monkeypatch: Patch) -> None:
    def gradient(self: Releases, step: tuple[int, int, int]) -> NoisedGradient:
        released = _gradient(self, step)
        return released._replace(noise_std=float(released.vector.std()))

    monkeypatch.setattr(Releases, "gradient", gradient)
    assert "noise as told" in on_bench(noise_of_steps)


# Patients as they are loaded

_batches = UnitSource.batches


def batch_centred(patch: Patch) -> None:
    patch.setattr(unit_batches_module, "standardise", lambda images: images - images.mean(dim=0, keepdim=True))


def each_image_a_unit(patch: Patch) -> None:
    def batches(self: UnitSource, units: Any, generator_of: Any) -> Iterator[UnitBatch]:
        for batch in _batches(self, units, generator_of):
            views = batch.views[: batch.count].flatten(0, 1)[:, None]
            yield UnitBatch(views, [np.random.default_rng(0)] * len(views), len(views))

    patch.setattr(UnitSource, "batches", batches)


def filled_up_with_neighbours(patch: Patch) -> None:
    def pick(self: UnitSource, unit: int, rng: np.random.Generator) -> np.ndarray:
        both = np.concatenate([self._of_unit[unit], self._of_unit[(unit + 1) % len(self)]])
        return np.resize(both[rng.permutation(len(both))], self._images_per_unit)

    patch.setattr(UnitSource, "_pick", pick)


def one_generator(patch: Patch) -> None:
    def batches(self: UnitSource, units: Any, generator_of: Any) -> Iterator[UnitBatch]:
        shared = generator_of("shared")
        return _batches(self, units, lambda _: shared)

    patch.setattr(UnitSource, "batches", batches)


LOADED: dict[str, tuple[Plant, str]] = {
    "batch centred": (batch_centred, "views apart, one moved"),
    "each image a unit": (each_image_a_unit, "one row a unit"),
    "filled up with neighbours": (filled_up_with_neighbours, "views apart, one moved"),
    "one generator": (one_generator, "views apart, one not drawn"),
}


@pytest.mark.parametrize(("plant", "check"), LOADED.values(), ids=LOADED.keys())
def test_units_that_are_not_patients_are_named(plant: Plant, check: str, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert check in failed(units_as_loaded(plan_of()))


def test_one_generator_for_a_steps_units_is_named(monkeypatch: Patch) -> None:
    def gradient(self: Releases, step: tuple[int, int, int]) -> NoisedGradient:
        units = self.units

        class Shared:
            drawn = units.drawn  # type: ignore[attr-defined]

            def __len__(self) -> int:
                return len(units)

            def batches(self, drawn: Any, generator_of: Any) -> Iterator[UnitBatch]:
                shared = generator_of("all")
                return units.batches(drawn, lambda _: shared)

        self.units = Shared()
        try:
            return _gradient(self, step)
        finally:
            self.units = units

    monkeypatch.setattr(Releases, "gradient", gradient)
    assert "a generator each" in on_bench(charges)


@pytest.mark.parametrize("most", [lambda mechanism: 64, lambda mechanism: 2 * mechanism.nominal_units])
def test_a_draw_that_ends_early_is_named(most: Callable[[StepMechanism], int], monkeypatch: Patch) -> None:
    draw = StepMechanism.draw
    monkeypatch.setattr(StepMechanism, "draw", lambda self, units, stream: draw(self, units, stream)[: most(self)])
    assert "sampling of many" in on_bench(sampling)


# Long vectors, and keys


def first_piece_alone(patch: Patch) -> None:
    def normal(self: Stream, count: int) -> np.ndarray:
        noise = _normal(self, count)
        noise[2 * CHUNK_PAIRS :] = 0.0
        return noise

    patch.setattr(Stream, "_normal", normal)


def one_piece_for_all(patch: Patch) -> None:
    patch.setattr(Stream, "_normal", lambda self, count: np.resize(_normal(self, min(count, 2 * CHUNK_PAIRS)), count))


@pytest.mark.parametrize(
    ("plant", "check"), [(first_piece_alone, "long noise scale"), (one_piece_for_all, "long noise pattern")]
)
def test_noise_that_ends_or_comes_again_is_named(plant: Plant, check: str, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert check in on_bench(long_noise)


def test_a_mask_that_starts_anew_with_each_piece_is_named(monkeypatch: Patch) -> None:
    class Restarting:
        def __init__(self, key: bytes, word: int) -> None:
            self.key = key

        def update_into(self, zeros: Any, out: Any) -> None:
            keystream(self.key, 0).update_into(zeros, out)

    keystream = masks_module.keystream
    monkeypatch.setattr(masks_module, "keystream", Restarting)
    assert "fresh masks, pieces of one" in failed(masks_are_fresh(1e-6))


KEYS: dict[str, Callable[[], bytes]] = {
    "python's generator": lambda: random.randbytes(32),
    "the clock": lambda: time.time_ns().to_bytes(32, "big"),
    "zeros": lambda: bytes(32),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_keys_from_elsewhere_are_named(key: Callable[[], bytes], monkeypatch: Patch) -> None:
    monkeypatch.setattr(SystemCoins, "stream", lambda self, *label: Stream(key()))
    assert "keys of the operating system" in failed(own_entropy())


def test_coins_that_others_can_toss_are_named(monkeypatch: Patch) -> None:
    monkeypatch.setattr("privfm.federation.simulation.system_coins", lambda name: InjectedCoins(name.encode()))
    assert "keys of the operating system" in failed(own_entropy())
