"""The mechanism audit names bugs in what leaves a round, in what steps have in common, and in rarely drawn units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from privfm_attacks.mechanism import audit_mechanism, mechanism_checks
from privfm_attacks.verdicts import Verdict
from torch import Tensor

from privfm.dp import clipping as clipping_module
from privfm.dp.clipping import ClippedSum, ClippingEngine
from privfm.dp.coins import InjectedCoins, Stream
from privfm.dp.mechanism import StepMechanism
from privfm.federation import releases as releases_module
from privfm.federation.network import build_learner
from privfm.federation.optimizers import NoisedGradient
from privfm.federation.planning import complete_plan
from privfm.federation.releases import Releases
from privfm.gradients.shares import Factors, Rows
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


def plan_of(sample_rate: float = 0.5, **sections: dict[str, Any]) -> Plan:
    base: dict[str, dict[str, Any]] = {
        "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3, "min_patients": 4},
        "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
        "privacy": {"images_per_unit": 2, "views": 1, "sample_rate": sample_rate},
        "federation": {"rounds": 2, "local_steps": 2, "retry_rounds": 2},
        "performance": {"device": "cpu", "threads": 1},
    }
    whole = {name: base.get(name, {}) | sections.get(name, {}) for name in {*base, *sections}}
    units = max(40, round(20 / sample_rate))
    return complete_plan(parse_plan(whole), {HospitalId(name): units for name in ("a", "b", "c")}, 0.3)


def fails(check: str, plan: Plan, plant: Plant) -> bool:
    """Whether a planted bug makes this check fail; what comes after it is not asked."""
    learner = build_learner(plan)
    learner.network.train()
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        return any(finding.check == check and not finding.passed for finding in mechanism_checks(plan, learner))


def failed_checks(plan: Plan, plant: Plant = lambda _: None) -> set[str]:
    learner = build_learner(plan)
    learner.network.train()
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        result = audit_mechanism(plan, learner)
    failed = {finding.check for finding in result.findings if not finding.passed}
    assert result.verdict is (Verdict.LEAK if failed else Verdict.NO_LEAK_DETECTED)
    return failed


def slow(value: Any) -> Any:
    """The same again of something else, which takes a while."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def privacy(sample_rate: float, **more: Any) -> dict[str, dict[str, Any]]:
    return {"privacy": {"images_per_unit": 2, "views": 1, "sample_rate": sample_rate, **more}}


@pytest.mark.parametrize("sample_rate", [slow(1.0), slow(0.97), slow(0.5), slow(0.05), 0.005])
def test_what_is_sound_passes_however_seldom_units_are_drawn(sample_rate: float) -> None:
    assert failed_checks(plan_of(sample_rate)) == set()


@pytest.mark.parametrize("sample_rate", [0.5, slow(0.005)])
@pytest.mark.parametrize(
    "sections",
    [
        slow({"evaluation": {"local_loss": True, "loss_bound": 2.0}}),
        slow({"optimizer": {"name": "adam"}}),
        {"optimizer": {"name": "adam-bc"}},
        slow({"federation": {"rounds": 1, "local_steps": 25, "retry_rounds": 0}}),
    ],
    ids=["loss", "adam", "adam-bc", "many steps"],
)
def test_other_sound_plans_pass(sections: dict[str, dict[str, Any]], sample_rate: float) -> None:
    assert failed_checks(plan_of(sample_rate, **sections)) == set()


@pytest.mark.parametrize(
    "more",
    [
        slow({"clip_quantile": 0.5}),
        slow({"noise_terms": 4}),
        slow({"epsilon": 0.05}),
        {"dp": False},
        {"clip_norm": 1e-4},
    ],
)
@pytest.mark.parametrize("sample_rate", [0.5, slow(0.005)])
def test_sound_noise_of_any_size_passes(more: dict[str, Any], sample_rate: float) -> None:
    assert failed_checks(plan_of(sample_rate, **privacy(sample_rate, **more))) == set()


# Planted bugs

_gradient, _of_round, _release = Releases.gradient, Releases.of_round, StepMechanism.release


def round_without_noise(patch: Patch) -> None:
    def of_round(self: Releases, *given: Any) -> list[Tensor]:
        kept, self.mechanism = self.mechanism, replace(self.mechanism, noise_multiplier=1e-6)
        try:
            return _of_round(self, *given)
        finally:
            self.mechanism = kept

    patch.setattr(Releases, "of_round", of_round)


def count_in_the_update(patch: Patch) -> None:
    def of_round(self: Releases, *given: Any) -> list[Tensor]:
        update, *rest = _of_round(self, *given)
        update[0] = len(self.units)
        return [update, *rest]

    patch.setattr(Releases, "of_round", of_round)


def longer_update(patch: Patch) -> None:
    def of_round(self: Releases, *given: Any) -> list[Tensor]:
        update, *rest = _of_round(self, *given)
        return [torch.cat([update, update[:1]]), *rest]

    patch.setattr(Releases, "of_round", of_round)


def quiet_in(chosen: Callable[[tuple[int, int, int]], bool]) -> Plant:
    def plant(patch: Patch) -> None:
        def gradient(self: Releases, step: tuple[int, int, int]) -> NoisedGradient:
            kept = self.mechanism
            if chosen(step):
                self.mechanism = replace(kept, noise_multiplier=1e-6)
            try:
                return _gradient(self, step)
            finally:
                self.mechanism = kept

        patch.setattr(Releases, "gradient", gradient)

    return plant


def kept_coins(kind: str, key_of: Callable[[tuple[Any, ...]], Any]) -> Plant:
    """Coins that one hospital keeps, and takes again for every label that the key does not tell apart."""

    def plant(patch: Patch) -> None:
        def gradient(self: Releases, step: tuple[int, int, int]) -> NoisedGradient:
            coins, kept = self.coins, self.__dict__.setdefault("kept", {})

            class Kept:
                private = True

                def stream(self, *label: str | int) -> Stream:
                    stream = coins.stream(*label)
                    if label[0] != kind:
                        return stream
                    return Stream(kept.setdefault(key_of(label), stream.read(32)))

            self.coins = Kept()
            try:
                return _gradient(self, step)
            finally:
                self.coins = coins

        patch.setattr(Releases, "gradient", gradient)

    return plant


def asked_twice(patch: Patch) -> None:
    def gradient(self: Releases, step: tuple[int, int, int]) -> NoisedGradient:
        return _gradient(self, (step[0], 0, step[2]))

    patch.setattr(Releases, "gradient", gradient)


def two_noised_steps_a_draw(patch: Patch) -> None:
    def of_round(self: Releases, *given: Any) -> list[Tensor]:
        coins, plan, drawn = self.coins, self.plan, {}

        class Doubled:
            private = True

            def stream(self, *label: Any) -> Stream:
                if label[0] != "draw":
                    return coins.stream(*label)
                key = (*label[:3], label[3] // 2)
                if key not in drawn:
                    drawn[key] = coins.stream(*key).read(32)
                return Stream(drawn[key])

        federation = plan.federation.model_copy(update={"local_steps": 2 * plan.federation.local_steps})
        self.coins, self.plan = Doubled(), plan.model_copy(update={"federation": federation})
        try:
            return _of_round(self, *given)
        finally:
            self.coins, self.plan = coins, plan

    patch.setattr(Releases, "of_round", of_round)


def noise_made(change: Callable[[Tensor], Tensor]) -> Plant:
    def plant(patch: Patch) -> None:
        def release(self: StepMechanism, clipped: ClippedSum, stream: Stream) -> Tensor:
            exact = clipped.vector / self.divisor
            return exact + change(_release(self, clipped, stream) - exact)

        patch.setattr(StepMechanism, "release", release)

    return plant


def halves_alike(noise: Tensor) -> Tensor:
    half = noise.numel() // 2
    return torch.cat([noise[:half], noise[:half], noise[2 * half :]])


def halves_mirrored(noise: Tensor) -> Tensor:
    half = noise.numel() // 2
    return torch.cat([noise[:half], -noise[:half].flip(0), noise[2 * half :]])


def noise_of(kind: Callable[[np.ndarray], np.ndarray]) -> Plant:
    def plant(patch: Patch) -> None:
        def release(self: StepMechanism, clipped: ClippedSum, stream: Stream) -> Tensor:
            noise = torch.from_numpy(kind(stream.uniform(clipped.vector.numel()))).float()
            scale = self.gradient_noise_multiplier * self.clip_norm
            return (clipped.vector + noise * scale) / self.divisor

        patch.setattr(StepMechanism, "release", release)

    return plant


def noise_of_torch(patch: Patch) -> None:
    def release(self: StepMechanism, clipped: ClippedSum, stream: Stream) -> Tensor:
        noise = torch.randn(clipped.vector.numel())
        return (clipped.vector + noise * self.gradient_noise_multiplier * self.clip_norm) / self.divisor

    patch.setattr(StepMechanism, "release", release)


def draws_of_numpy(patch: Patch) -> None:
    patch.setattr(
        StepMechanism,
        "draw",
        lambda self, units, stream: np.flatnonzero(np.random.random(units) < self.sample_rate).astype(np.int64),
    )


def draws_of_a_public_seed(patch: Patch) -> None:
    def gradient(self: Releases, step: tuple[int, int, int]) -> NoisedGradient:
        coins, public = self.coins, InjectedCoins(b"public")

        class Mixed:
            private = True

            def stream(self, *label: str | int) -> Stream:
                return (public if label[0] == "draw" else coins).stream(*label)

        self.coins = Mixed()
        try:
            return _gradient(self, step)
        finally:
            self.coins = coins

    patch.setattr(Releases, "gradient", gradient)


def drawn_with_replacement(patch: Patch) -> None:
    def draw(self: StepMechanism, units: int, stream: Stream) -> np.ndarray:
        rng = stream.generator()
        return np.sort(rng.integers(0, units, rng.binomial(units, self.sample_rate)))

    patch.setattr(StepMechanism, "draw", draw)


def batches_of_one_size(patch: Patch) -> None:
    def draw(self: StepMechanism, units: int, stream: Stream) -> np.ndarray:
        return np.sort(stream.generator().permutation(units)[: round(self.sample_rate * units)])

    patch.setattr(StepMechanism, "draw", draw)


def shuffled(size_of: Callable[[StepMechanism, int, np.random.Generator], int]) -> Plant:
    """Units are shuffled and taken in turn, and shuffled again when none is left, as data loaders do."""

    def plant(patch: Patch) -> None:
        waiting: dict[int, list[int]] = {}

        def draw(self: StepMechanism, units: int, stream: Stream) -> np.ndarray:
            rng, queue = stream.generator(), waiting.setdefault(units, [])
            size = size_of(self, units, rng)
            if len(queue) < size:
                queue[:] = rng.permutation(units).tolist()
            drawn, queue[:] = queue[:size], queue[size:]
            return np.array(sorted(drawn), dtype=np.int64)

        patch.setattr(StepMechanism, "draw", draw)

    return plant


def of_one_size(mechanism: StepMechanism, units: int, rng: np.random.Generator) -> int:
    return round(mechanism.sample_rate * units)


def of_a_poisson_size(mechanism: StepMechanism, units: int, rng: np.random.Generator) -> int:
    return int(rng.binomial(units, mechanism.sample_rate))


class LayersClipped(ClippingEngine):
    """Each parameter's gradient clipped by itself."""

    def add(self, losses: Callable[[], Tensor], units: int, counted: int | None = None) -> None:
        if not units:
            return
        real, parts = torch.arange(units) < (units if counted is None else counted), []
        for share in clipping_module.unit_shares(self._network, losses, units):
            rows = share.rows().values
            factors = torch.where(real, self._clip_norm / rows.norm(dim=1).clamp(min=self._clip_norm), 0.0)
            parts.append(factors @ rows)
        self._units += int(real.sum())
        self._sums = [one + two for one, two in zip(self._sums, parts, strict=True)] if self._sums else parts


class MicroBatchesClipped(ClippingEngine):
    def add(self, losses: Callable[[], Tensor], units: int, counted: int | None = None) -> None:
        kept, self._sums = self._sums, []
        whole, self._clip_norm = self._clip_norm, 1e9
        super().add(losses, units, counted)
        self._clip_norm = whole
        norm = float(torch.cat(self._sums).norm()) if self._sums else 0.0
        self._sums = [part * min(1.0, whole / max(1e-30, norm)) for part in self._sums]
        if kept:
            self._sums = [before + part for before, part in zip(kept, self._sums, strict=True)]


class AllCentred(ClippingEngine):
    """Every unit adds a direction of a clip norm too, as if one were exchanged for another."""

    def finish(self) -> ClippedSum:
        done = super().finish()
        direction = torch.zeros_like(done.vector)
        direction[0] = 1.0
        return replace(done, vector=done.vector - done.units * self._clip_norm * direction)


class NanLetThrough(ClippingEngine):
    def add(self, losses: Callable[[], Tensor], units: int, counted: int | None = None) -> None:
        rows = [share.rows().values for share in clipping_module.unit_shares(self._network, losses, units)]
        factors = (self._clip_norm / torch.cat(rows, dim=1).norm(dim=1).clamp(min=self._clip_norm)).float()
        factors[counted:] = 0.0
        parts = [factors @ row for row in rows]
        self._sums = [one + two for one, two in zip(self._sums, parts, strict=True)] if self._sums else parts


def engine(change: type[ClippingEngine]) -> Plant:
    return lambda patch: patch.setattr(releases_module, "ClippingEngine", change)


def last_parameter_forgotten(patch: Patch) -> None:
    norms = clipping_module._norms
    patch.setattr(clipping_module, "_norms", lambda shares, least=0.0: norms(shares[: max(1, len(shares) - 1)], least))


def norms_times(share: type[Factors] | type[Rows], factor: float) -> Plant:
    squared_norms = share.squared_norms

    def plant(patch: Patch) -> None:
        def smaller(self: Any) -> tuple[Tensor, Tensor]:
            squared, off = squared_norms(self)
            return squared * factor, off

        patch.setattr(share, "squared_norms", smaller)

    return plant


PLANTED: dict[str, tuple[Plant, str]] = {
    "a round without noise": (round_without_noise, "update"),
    "the count in the update": (count_in_the_update, "update"),
    "a longer update": (longer_update, "what leaves"),
    "no noise from round 2 on": (quiet_in(lambda step: step[0] >= 2), "noise of later steps"),
    "no noise from round 3 on": (quiet_in(lambda step: step[0] >= 3), "noise of later steps"),
    "no noise in retries": (quiet_in(lambda step: step[1] > 0), "noise of later steps"),
    "no noise in second steps": (quiet_in(lambda step: step[2] > 0), "noise of later steps"),
    "noise kept for retries": (kept_coins("noise", lambda label: (label[1], label[3])), "fresh noise, two attempts"),
    "noise kept over rounds": (kept_coins("noise", lambda label: label[3]), "fresh noise, two rounds"),
    "noise kept over steps": (kept_coins("noise", lambda label: label[1:3]), "fresh noise, two steps"),
    "a pool of five": (kept_coins("noise", lambda label: (2 * label[1] + label[3]) % 5), "fresh noise, two rounds"),
    "a draw for two steps": (kept_coins("draw", lambda label: (*label[1:3], label[3] // 2)), "fresh draws"),
    "draws kept over rounds": (kept_coins("draw", lambda label: label[3]), "fresh draws"),
    "draws of a public seed": (draws_of_a_public_seed, "fresh draws"),
    "draws of numpy's generator": (draws_of_numpy, "fresh draws, same seed"),
    "noise of torch's generator": (noise_of_torch, "fresh noise, same seed"),
    "coins of the first attempt": (asked_twice, "coins of its own"),
    "two noised steps a draw": (two_noised_steps_a_draw, "charged steps"),
    "drawn with replacement": (drawn_with_replacement, "sampling rate"),
    "halves alike": (noise_made(halves_alike), "noise pattern"),
    "halves mirrored": (noise_made(halves_mirrored), "noise repeats"),
    "uniform noise": (noise_of(lambda uniform: 12**0.5 * (uniform - 0.5)), "noise shape"),
    "noise of two values": (noise_of(lambda uniform: np.where(uniform < 0.5, -1.0, 1.0)), "noise shape"),
    "layers each clipped": (engine(LayersClipped), "sensitivity"),
    "units centred": (engine(AllCentred), "sensitivity"),
    "last parameter forgotten": (last_parameter_forgotten, "clipped sum"),
    "norms written out too small": (norms_times(Rows, 0.0), "clipped sum"),
    "norms by tokens too small": (norms_times(Factors, 0.01), "clipped sum"),
}  # fmt: skip


@pytest.mark.parametrize(("plant", "check"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_bug_is_named(plant: Plant, check: str) -> None:
    assert fails(check, plan_of(), plant)


SELDOM: dict[str, tuple[Plant, str]] = {
    "layers each clipped": (engine(LayersClipped), "sensitivity"),
    "micro-batches each clipped": (engine(MicroBatchesClipped), "clipped sum"),
    "NaN let through": (engine(NanLetThrough), "not finite"),
    "batches of one size": (batches_of_one_size, "sampling variance"),
    "shuffled": (shuffled(of_one_size), "sampling variance"),
    "shuffled, of a Poisson size": (shuffled(of_a_poisson_size), "sampling of each"),
    "draws kept over rounds": (kept_coins("draw", lambda label: label[3]), "fresh draws"),
    "a round without noise": (round_without_noise, "update"),
}


@pytest.mark.parametrize("sample_rate", [0.05, slow(0.005)])
@pytest.mark.parametrize(("plant", "check"), SELDOM.values(), ids=SELDOM.keys())
def test_a_planted_bug_is_named_where_units_are_seldom_drawn(plant: Plant, check: str, sample_rate: float) -> None:
    assert fails(check, plan_of(sample_rate), plant)


def test_too_few_drawn_is_a_failure() -> None:
    def nobody(patch: Patch) -> None:
        patch.setattr(StepMechanism, "draw", lambda self, units, stream: np.zeros(0, np.int64))

    assert {"clipped sum", "shared parameter", "not finite", "sensitivity"} <= failed_checks(plan_of(), nobody)
