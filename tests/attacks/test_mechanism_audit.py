"""The mechanism audit stays silent over the real mechanism, and names each planted bug."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from privfm_attacks.mechanism import audit_mechanism, mechanism_checks, units_apart
from privfm_attacks.verdicts import Verdict
from torch import Tensor, nn

from privfm.dp import mechanism as mechanism_module
from privfm.dp.clipping import ClippedSum, ClippingEngine
from privfm.dp.coins import InjectedCoins, Stream, SystemCoins
from privfm.dp.events import SampledGaussian
from privfm.dp.mechanism import StepMechanism
from privfm.federation import releases as releases_module
from privfm.federation.network import Learner, build_learner
from privfm.federation.optimizers import NoisedGradient
from privfm.federation.planning import complete_plan
from privfm.federation.releases import Releases
from privfm.gradients import one_pass
from privfm.gradients.shares import Rows
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan
from privfm.secagg import keys as secagg_keys

Patch = pytest.MonkeyPatch


def plan_of(**sections: dict[str, Any]) -> Plan:
    base: dict[str, dict[str, Any]] = {
        "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3, "min_patients": 4},
        "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
        "privacy": {"images_per_unit": 2, "views": 1},
        "federation": {"rounds": 2, "local_steps": 2, "retry_rounds": 2},
        "performance": {"device": "cpu", "threads": 1},
    }
    whole = {name: base.get(name, {}) | sections.get(name, {}) for name in {*base, *sections}}
    return complete_plan(parse_plan(whole), {HospitalId(name): 40 for name in ("a", "b", "c")}, 0.3)


def audit(plan: Plan | None = None, learner: Learner | None = None) -> Any:
    plan = plan or plan_of()
    learner = learner or build_learner(plan)
    learner.network.train()
    return audit_mechanism(plan, learner)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        pytest.param({"privacy": {"clip_quantile": 0.4, "images_per_unit": 2, "views": 1}}, marks=pytest.mark.slow),
        pytest.param(
            {"privacy": {"noise_terms": 4, "sample_rate": 1.0, "images_per_unit": 2, "views": 1}},
            marks=pytest.mark.slow,
        ),
        pytest.param({"evaluation": {"local_loss": True, "loss_bound": 2.0}}, marks=pytest.mark.slow),
        {"model": {"trainable": "lora", "patch_size": 4, "width": 16, "depth": 1, "heads": 2}},
        pytest.param({"objective": {"name": "byol"}}, marks=pytest.mark.slow),
        pytest.param({"objective": {"name": "simclr"}}, marks=pytest.mark.slow),
    ],
    ids=["default", "adaptive", "four draws", "loss", "lora", "byol", "simclr"],
)
def test_what_is_sound_passes(sections: dict[str, dict[str, Any]]) -> None:
    result = audit(plan_of(**sections))
    assert [finding for finding in result.findings if not finding.passed] == []
    assert result.verdict is Verdict.NO_LEAK_DETECTED


@pytest.mark.slow
def test_twenty_seeds_raise_no_false_alarm() -> None:
    plan = plan_of()
    learner = build_learner(plan)
    assert {audit(plan, learner).verdict for _ in range(20)} == {Verdict.NO_LEAK_DETECTED}


# Planted bugs

_release, _draw, _event = StepMechanism.release, StepMechanism.draw, StepMechanism.event


def noise_times(factor: Callable[[StepMechanism], float]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        def release(self: StepMechanism, clipped: ClippedSum, stream: Stream) -> Tensor:
            exact = clipped.vector / self.divisor
            return exact + factor(self) * (_release(self, clipped, stream) - exact)

        patch.setattr(StepMechanism, "release", release)

    return plant


def divided_twice(patch: Patch) -> None:
    patch.setattr(StepMechanism, "release", lambda self, *given: _release(self, *given) / self.divisor)


def empty_batch_skipped(patch: Patch) -> None:
    def release(self: StepMechanism, clipped: ClippedSum, stream: Stream) -> Tensor:
        return _release(self, clipped, stream) if clipped.units else torch.zeros_like(clipped.vector)

    patch.setattr(StepMechanism, "release", release)


def noise_reused_across_rounds(patch: Patch) -> None:
    kept: dict[int, Stream] = {}
    stream = SystemCoins.stream

    def reused(self: SystemCoins, *label: str | int) -> Stream:
        if label[0] != "noise":
            return stream(self, *label)
        kept.setdefault(id(self), b"".join([np.random.bytes(32)]))  # type: ignore[arg-type]
        return Stream(kept[id(self)])  # type: ignore[arg-type]

    patch.setattr(SystemCoins, "stream", reused)


def one_stream_for_all(patch: Patch) -> None:
    patch.setattr(SystemCoins, "stream", lambda self, *label: InjectedCoins(b"shared").stream(*label))


def rate_of_the_data(patch: Patch) -> None:
    patch.setattr(
        StepMechanism,
        "draw",
        lambda self, units, stream: _draw(replace(self, sample_rate=min(1.0, 12 / (units + 1))), units, stream),
    )


def divisor_of_the_data(patch: Patch) -> None:
    gradient = Releases.gradient

    def counted(self: Releases, step: tuple[int, int, int]) -> NoisedGradient:
        kept, self.mechanism = self.mechanism, replace(self.mechanism, nominal_units=max(1, len(self.units)))
        try:
            return gradient(self, step)
        finally:
            self.mechanism = kept

    patch.setattr(Releases, "gradient", counted)


def engine(change: type[ClippingEngine]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(releases_module, "ClippingEngine", change)


class ClipIgnored(ClippingEngine):
    def __init__(self, network: Any, clip_norm: float, precision: torch.dtype) -> None:
        super().__init__(network, 1e9, precision)
        self.told = clip_norm

    def finish(self) -> ClippedSum:
        return replace(super().finish(), clip_norm=self.told)


class ClippedAfterAveraging(ClipIgnored):
    def finish(self) -> ClippedSum:
        done = super().finish()
        bound = self.told * max(1, done.units)
        return replace(done, vector=done.vector * min(1.0, bound / max(1e-30, float(done.vector.norm()))))


class MicroBatchesClipped(ClippingEngine):
    def add(self, losses: Callable[[], Tensor], units: int, counted: int | None = None) -> None:
        kept, self._sums = self._sums, []
        whole, self._clip_norm = self._clip_norm, 1e9
        super().add(losses, units, counted)
        self._clip_norm = whole
        self._sums = [part * min(1.0, whole / max(1e-30, float(part.norm()))) for part in self._sums]
        if kept:
            self._sums = [before + part for before, part in zip(kept, self._sums, strict=True)]


class CountedTwice(ClippingEngine):
    def add(self, losses: Callable[[], Tensor], units: int, counted: int | None = None) -> None:
        super().add(losses, units, counted)
        super().add(losses, units, counted)


class NanLetThrough(ClippingEngine):
    def add(self, losses: Callable[[], Tensor], units: int, counted: int | None = None) -> None:
        shares = one_pass_shares(self, losses, units)
        factors = (self._clip_norm / torch.cat(shares, dim=1).norm(dim=1).clamp(min=self._clip_norm)).float()
        factors[counted:] = 0.0
        sums = [factors @ share for share in shares]
        self._sums = [one + two for one, two in zip(self._sums, sums, strict=True)] if self._sums else sums


def one_pass_shares(self: ClippingEngine, losses: Callable[[], Tensor], units: int) -> list[Tensor]:
    return [share.rows().values for share in one_pass.unit_shares(self._network, losses, units)]


def calls_clipped_apart(patch: Patch) -> None:
    class Apart(Rows):
        parts: list[Any]

        def squared_norms(self) -> tuple[Tensor, Tensor]:
            squared = torch.stack([part.squared_norms()[0] for part in self.parts]).sum(dim=0)
            return squared, torch.zeros_like(squared)

    joined = one_pass.joined

    def apart(found: list[Any]) -> Any:
        whole = joined(found).rows()
        share = Apart(whole.values)
        object.__setattr__(share, "parts", found)
        return share

    patch.setattr(one_pass, "joined", apart)


def events(**change: Any) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        def event(self: StepMechanism, steps: int) -> SampledGaussian:
            made = _event(self, steps)
            return replace(made, **{name: value(getattr(made, name)) for name, value in change.items()})

        patch.setattr(StepMechanism, "event", event)

    return plant


def loss_released(patch: Patch) -> None:
    of_round = Releases.of_round
    patch.setattr(Releases, "of_round", lambda self, *given: [*of_round(self, *given), torch.zeros(1)])


def count_for_nothing(patch: Patch) -> None:
    patch.setattr(StepMechanism, "gradient_noise_multiplier", property(lambda self: self.noise_multiplier))


def masks_reused(patch: Patch) -> None:
    derive = secagg_keys.derive
    patch.setattr(
        secagg_keys,
        "derive",
        lambda secret, context, label, *rest, **more: derive(bytes(32), bytes(32), label, *rest, **more),
    )


PLANTED: dict[str, tuple[Callable[[Patch], None], str]] = {
    "noise missing": (noise_times(lambda _: 0.0), "noise scale"),
    "noise halved": (noise_times(lambda _: 0.5), "noise scale"),
    "noise a twentieth short": (noise_times(lambda _: 0.95), "noise scale"),
    "noise shared out among hospitals": (noise_times(lambda _: 3**-0.5), "noise scale"),
    "divided by the batch twice": (divided_twice, "noise scale"),
    "clip ignored": (engine(ClipIgnored), "sensitivity"),
    "clip after averaging": (engine(ClippedAfterAveraging), "sensitivity"),
    "micro-batches each clipped": (engine(MicroBatchesClipped), "clipped sum"),
    "counted twice": (engine(CountedTwice), "sensitivity"),
    "calls clipped apart": (calls_clipped_apart, "shared parameter"),
    "NaN let through": (engine(NanLetThrough), "not finite"),
    "divisor of the data": (divisor_of_the_data, "scale"),
    "rate of the data": (rate_of_the_data, "sampling rate"),
    "noise reused across rounds": (noise_reused_across_rounds, "fresh noise, two rounds"),
    "one stream for all hospitals": (one_stream_for_all, "fresh noise, two hospitals"),
    "draws can be replayed": (one_stream_for_all, "fresh draws"),
    "masks reused": (masks_reused, "fresh masks, two rounds, pair"),
    "empty batch skipped": (empty_batch_skipped, "empty draw"),
    "a step not charged": (events(steps=lambda steps: steps - 1), "charged steps"),
    "charged at twice the noise": (events(noise_multiplier=lambda noise: 2 * noise), "charged mechanism"),
    "charged at half the rate": (events(sample_rate=lambda rate: rate / 2), "charged mechanism"),
    "a loss released": (loss_released, "what leaves"),
}


@pytest.mark.parametrize(("plant", "check"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_bug_is_named(plant: Callable[[Patch], None], check: str, monkeypatch: Patch) -> None:
    plan = plan_of()
    learner = build_learner(plan)
    learner.network.train()
    plant(monkeypatch)
    assert any(finding.check == check and not finding.passed for finding in mechanism_checks(plan, learner))


def test_what_failed_is_told(monkeypatch: Patch) -> None:
    noise_times(lambda _: 0.5)(monkeypatch)
    result = audit()
    assert result.verdict is Verdict.LEAK
    assert "noise scale" in result.sentence


def test_a_count_that_takes_no_noise_of_the_gradient_is_named(monkeypatch: Patch) -> None:
    plan = plan_of(privacy={"clip_quantile": 0.5, "images_per_unit": 2, "views": 1})
    learner = build_learner(plan)
    count_for_nothing(monkeypatch)
    assert any(finding.check == "noise scale" and not finding.passed for finding in mechanism_checks(plan, learner))


class Centred:
    """An objective whose losses are centred on the batch."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def unit_losses(self, network: Any, views: Tensor, rngs: list[np.random.Generator]) -> Tensor:
        return self.base.unit_losses(network, views - views.mean(dim=0, keepdim=True), rngs)


class RawTeacher:
    """An objective that remembers what it saw last."""

    def __init__(self, base: Any) -> None:
        self.base, self.seen = base, 0.0

    def unit_losses(self, network: Any, views: Tensor, rngs: list[np.random.Generator]) -> Tensor:
        losses: Tensor = self.base.unit_losses(network, views, rngs) * (1 + self.seen)
        self.seen = 0.9 * self.seen + 0.1 * float(views.square().mean())
        return losses


class BatchNormed:
    """An objective that normalises the batch."""

    def __init__(self, base: Any) -> None:
        self.base, self.norm = base, nn.BatchNorm2d(1, affine=False)

    def unit_losses(self, network: Any, views: Tensor, rngs: list[np.random.Generator]) -> Tensor:
        normed = self.norm(views.flatten(0, 1)).reshape(views.shape)
        losses: Tensor = self.base.unit_losses(network, normed, rngs)
        return losses


@pytest.mark.parametrize("coupled", [Centred, BatchNormed, RawTeacher])
def test_an_objective_that_couples_units_is_named(coupled: Callable[[Any], Any]) -> None:
    plan = plan_of()
    learner = build_learner(plan)
    found = units_apart(learner._replace(objective=coupled(learner.objective)))
    failed = {finding.check for finding in found if not finding.passed}
    assert any(check.startswith("units apart") for check in failed)


def test_batch_norm_in_the_network_is_named() -> None:
    learner = build_learner(plan_of())
    first = next(name for name, module in learner.network.named_modules() if isinstance(module, nn.Conv2d))
    place, _, last = first.rpartition(".")
    projection = learner.network.get_submodule(first)
    normed = nn.Sequential(projection, nn.BatchNorm2d(projection.out_channels))  # type: ignore[arg-type]
    setattr(learner.network.get_submodule(place), last, normed)
    learner.network.train()
    failed = {finding.check for finding in units_apart(learner) if not finding.passed}
    assert {"units apart, one moved", "network untouched"} <= failed


def test_the_result_is_plain_data() -> None:
    told = audit().to_json()
    assert told["name"] == "mechanism"
    assert told["verdict"] == "NO LEAK DETECTED"
    assert math.isfinite(told["figures"]["checks"])
    assert mechanism_module.__name__ not in str(told)
