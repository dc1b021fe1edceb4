"""The reconstruction audit is silent over a sound mechanism, loud over a broken one, and says when it saw nothing."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from privfm_attacks import rebuilding as rebuilding_module
from privfm_attacks.identification import Picked
from privfm_attacks.informed import Identified
from privfm_attacks.pictures import pictures_of
from privfm_attacks.rebuilding import Rebuilt, Way
from privfm_attacks.reconstruction import CLEAR, ReconstructionEffort, audit_reconstruction
from privfm_attacks.verdicts import AuditResult, Verdict
from torch import Tensor

from privfm.dp import mechanism as mechanism_module
from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import Stream
from privfm.dp.mechanism import StepMechanism
from privfm.federation.planning import complete_plan
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan

QUICK = ReconstructionEffort(trials=300, images=4, noised=30, iterated=1, iterations=40)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def plan_of(rounds: int = 5, **privacy: Any) -> Plan:
    sections = {
        "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3},
        "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
        "privacy": {"images_per_unit": 2, **privacy},
        "federation": {"rounds": rounds, "local_steps": 2, "retry_rounds": 0},
        "performance": {"device": "cpu", "threads": 1},
    }
    return complete_plan(parse_plan(sections), {HospitalId(name): 60 for name in ("a", "b", "c")}, 0.3)


def audit(plan: Plan) -> AuditResult:
    return audit_reconstruction(plan, effort=QUICK)


def failed(result: AuditResult) -> set[str]:
    return {finding.check for finding in result.findings if not finding.passed}


def test_a_sound_plan_passes_beside_its_controls() -> None:
    result = audit(plan_of())
    assert (result.verdict, failed(result)) == (Verdict.NO_LEAK_DETECTED, set())
    figures = result.figures
    assert figures["rate_low"] <= figures["bound"] < figures["halved"] < figures["control"]
    assert 0.01 < figures["rate"] < 0.4
    assert figures["psnr_image"] > CLEAR > figures["best_noised"]
    assert figures["psnr_noised"] == pytest.approx(figures["average_noised"], abs=1.0)
    assert figures["matched_control"] == 1.0
    assert "no attack can exceed" in result.sentence
    json.dumps(result.to_json(), allow_nan=False)
    assert sum("sums a member's image fits better" in finding.detail for finding in result.findings) == 1
    (plot,) = result.plots
    assert min(rate for _, rate in plot.curves["no attack beyond"]) == pytest.approx(figures["bound"], rel=0.02)
    assert plot.curves["picked"][0][1] == figures["rate"]
    assert len(result.pictures) == 16
    assert float(result.pictures[0].name.split()[-2]) > CLEAR > float(result.pictures[-1].name.split()[-2])


_release, _draw = StepMechanism.release, mechanism_module.poisson_draw


def with_noise(share: float) -> Any:
    def release(self: StepMechanism, clipped: ClippedSum, stream: Stream) -> Tensor:
        exact = clipped.vector / self.divisor
        return exact + share * (_release(self, clipped, stream) - exact)

    return release


@pytest.mark.parametrize("share", [0.5, 0.0], ids=["half the noise", "no noise"])
def test_noise_that_is_lacking_is_a_leak(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepMechanism, "release", with_noise(share))
    result = audit(plan_of())
    assert result.verdict is Verdict.LEAK
    assert "right patient within the bound" in failed(result)
    if not share:
        assert {"images under noise", "images told apart under noise"} <= failed(result)


@pytest.mark.parametrize("sample_rate", [0.5, 0.05])
def test_a_plan_without_privacy_is_a_leak(sample_rate: float) -> None:
    result = audit(plan_of(dp=False, sample_rate=sample_rate))
    assert result.verdict is Verdict.LEAK
    assert "right patient within the bound" in failed(result)


def test_a_bound_that_allows_everything_is_no_excuse() -> None:
    result = audit(plan_of(epsilon=100.0))
    assert result.verdict is Verdict.LEAK
    assert result.figures["bound"] > 0.99


def test_without_a_control_nothing_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding_module, "solve_patches", lambda positions, weights, prior, noise_std=0.0: prior)
    result = audit(plan_of())
    assert (result.verdict, failed(result)) == (Verdict.INCONCLUSIVE, {"control rebuilt"})


def test_nobody_drawn_settles_nothing() -> None:
    result = audit(plan_of(rounds=1, sample_rate=0.002))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "room above the bound" in failed(result)


def identified(own: list[bool], drawn: list[bool], bound: float) -> Identified:
    plan = plan_of()
    picked = Picked(np.array(own), np.array(drawn))
    everybody = Picked(np.ones(500, dtype=bool), np.ones(500, dtype=bool))
    return Identified(plan.hospitals[0], picked, everybody, everybody, bound, highest=1.0, alpha=0.01)


def test_limits_and_not_rates_are_held_against_the_bound() -> None:
    assert not identified([True] * 22 + [False] * 78, [True] * 100, 0.2).leaks  # 22%, and no lower limit above 20%
    assert identified([True] * 220 + [False] * 480, [True] * 700, 0.2).leaks
    assert identified([True] * 30 + [False] * 970, [True] * 30 + [False] * 970, 1.0).leaks  # all who took part
    assert not identified([True] * 3 + [False] * 997, [True] * 3 + [False] * 997, 1.0).leaks  # of whom there were three
    assert not identified([False] * 100, [False] * 100, 0.2).leaks


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_show_the_image_in_the_middle_and_the_best(channels: int) -> None:
    original = torch.linspace(-1, 1, 4 * 4 * channels).reshape(channels, 4, 4)
    where = torch.arange(4).reshape(1, 1, 4).expand(channels, 4, 4) > 0
    average = torch.zeros_like(original)
    rebuilt = [Rebuilt(0, original, original + error, average, where) for error in (0.02, 0.2, 4.0)]
    picture, best = pictures_of(Way("way", "a way", tuple(rebuilt)))
    assert (picture.name, best.name) == ("a way, in the middle: 20 dB", "the best: 40 dB")
    assert (best.original == picture.original, best.rebuilt == picture.rebuilt) == (True, False)
    shown = [decoded(picture.original, channels), decoded(picture.rebuilt, channels)]
    assert (shown[0].min(), shown[0].max()) == (0.0, 1.0)
    assert np.allclose(shown[1][..., 1:], (shown[0] + 0.1).clip(max=1.0)[..., 1:], atol=0.01)
    assert np.allclose(shown[1][..., 0], 0.5, atol=0.01)  # hidden


def decoded(address: str, channels: int) -> np.ndarray:
    read = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
    return np.asarray(read).reshape(4, 4, channels).transpose(2, 0, 1) / 255


@pytest.mark.slow
def test_nineteen_of_twenty_are_right() -> None:
    assert sum(audit(plan_of()).verdict is Verdict.NO_LEAK_DETECTED for _ in range(20)) >= 19
