"""Forgetting: a model that saw who asked out is told apart, one that was trained again is not, and a false one is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from privfm_attacks import forgetting
from privfm_attacks import run as audits
from privfm_attacks.claims import Claim
from privfm_attacks.forgetting import ForgetEffort, Pair, audit_forgetting, pair_of
from privfm_attacks.overfitting import overfit
from privfm_attacks.telling_apart import ToldApart, tell_apart
from privfm_attacks.verdicts import AuditResult, Verdict

from privfm.errors import RunError
from privfm.federation.cohort import gather_cohort
from privfm.federation.directory import RunDirectory
from privfm.federation.forgetting import forget, train_again
from privfm.federation.forgotten import read_forgotten
from privfm.federation.network import load_network, save_network
from privfm.federation.training import train
from privfm.plan import parse_plan

QUICK = ForgetEffort(patients=22, draws=8, steps=300, seconds=20.0)
PLAN = {
    "data": {"source": "phantom", "patients": 150, "image_size": 16, "hospitals": 4, "min_patients": 20},
    "model": {"patch_size": 4, "width": 48, "depth": 2, "heads": 2, "init": "scratch"},
    "objective": {"mask_ratio": 0.5},
    "privacy": {"dp": False, "images_per_unit": 1, "sample_rate": 0.1, "clip_norm": 1.0},
    "federation": {"rounds": 1, "local_steps": 1, "retry_rounds": 0},
    "performance": {"device": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `was`, whose model learnt hospital-2's patients by heart without noise, and `again` without it."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("runs")
    was = RunDirectory(train(parse_plan(PLAN), root / "was").out)
    forget(was, "hospital-2")
    train_again(was, root / "again")
    learner = load_network(was.root)
    own = gather_cohort(was.plan).images["hospital-2"]  # type: ignore[index]
    overfit(learner, torch.from_numpy(own.load(np.arange(len(own)))), 1200, 60.0, np.random.default_rng(0))
    save_network(learner.network, was.root / "network.safetensors")
    return root


def audited(runs: Path, pair: Pair | None, effort: ForgetEffort = QUICK) -> AuditResult:
    was = RunDirectory(runs / "was")
    cohort = gather_cohort(was.plan, read_forgotten(was))
    return audit_forgetting(load_network(was.root, "start.safetensors"), cohort, pair, effort)


def failed(result: AuditResult) -> list[str]:
    return [finding.check for finding in result.findings if not finding.passed]


def test_trained_again_is_like_never_seen_and_the_unforgotten_model_is_told_apart(runs: Path) -> None:
    for name in ("was", "again"):  # the other one is found from either
        pair = pair_of(RunDirectory(runs / name))
        assert pair is not None
        assert pair.again is not None
        assert (pair.was.root.name, pair.again.root.name) == ("was", "again")
    result = audited(runs, pair)
    assert failed(result) == []
    assert result.verdict is Verdict.NO_LEAK_DETECTED
    assert result.figures["control: auc"] > 0.75
    assert result.figures["as it stood: low"] > 0.5
    assert "gives them away" in result.sentence


def test_no_alarm_is_not_enough_where_few_asked_out(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfm_attacks.forgetting.EQUIVALENT", 0.5)
    result = audited(runs, pair_of(RunDirectory(runs / "was")))
    assert failed(result) == ["enough asked out"]
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "trained again exactly" in result.sentence


def test_a_model_that_was_only_said_to_be_trained_again_leaks(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "again", tmp_path / "again", symlinks=True)
    shutil.copy(runs / "was" / "network.safetensors", tmp_path / "again" / "network.safetensors")
    result = audited(runs, pair_of(RunDirectory(tmp_path / "again")))
    assert result.verdict is Verdict.LEAK
    assert failed(result) == ["trained again, like models that never saw them"]


def test_another_start_is_not_the_same_run(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "again", tmp_path / "again", symlinks=True)
    shutil.copy(runs / "again" / "network.safetensors", tmp_path / "again" / "start.safetensors")
    result = audited(runs, pair_of(RunDirectory(tmp_path / "again")))
    assert result.verdict is Verdict.LEAK
    assert failed(result) == ["same start"]


def test_a_run_that_was_not_trained_again_leaks_what_it_learnt(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "was", tmp_path / "was", symlinks=True)
    pair = pair_of(RunDirectory(tmp_path / "was"))
    assert pair is not None
    assert pair.again is None
    result = audited(runs, pair)
    assert result.verdict is Verdict.LEAK
    assert "withdraw it" in result.sentence


def as_it_stands(told: ToldApart, asked: int, bystanders: int) -> AuditResult:
    return forgetting._not_trained_again(parse_plan(PLAN), told, (asked, bystanders), [], {})


@pytest.mark.parametrize("claim", [Claim(), Claim.of_guarantee(8.0, 1e-5)])
def test_seeing_nothing_is_nothing_where_nothing_could_be_seen(claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Claim, "of", lambda plan: claim)
    rng = np.random.default_rng(0)
    few = as_it_stands(tell_apart(np.array([-9.0]), rng.standard_normal(20), rng), 1, 20)
    assert few.verdict is Verdict.INCONCLUSIVE
    assert failed(few) == ["enough asked out"]
    assert "train again without them" in few.sentence
    wide = as_it_stands(tell_apart(rng.standard_normal(9), rng.standard_normal(60), rng), 9, 60)
    assert wide.verdict is Verdict.INCONCLUSIVE
    many = as_it_stands(tell_apart(rng.standard_normal(90), rng.standard_normal(120), rng), 90, 120)
    assert many.verdict is Verdict.NO_LEAK_DETECTED
    assert many.findings[-1].passed


def test_one_patient_learnt_by_heart_leaks_or_is_too_few_but_never_passes() -> None:
    rng = np.random.default_rng(0)
    for bystanders, verdict in ((20, Verdict.INCONCLUSIVE), (99, Verdict.INCONCLUSIVE), (120, Verdict.LEAK)):
        told = tell_apart(np.array([1e9]), rng.standard_normal(bystanders), rng)
        assert as_it_stands(told, 1, bystanders).verdict is verdict


def test_one_innocent_patient_who_stands_out_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in five lies above what epsilon 1 allows, by an area whose interval knows of no other patient."""
    monkeypatch.setattr(Claim, "of", lambda plan: Claim.of_guarantee(1.0, 1e-5))
    told = tell_apart(np.array([1.5]), np.random.default_rng(0).standard_normal(120), np.random.default_rng(0))
    assert told.low > Claim.of_guarantee(1.0, 1e-5).allowed
    result = as_it_stands(told, 1, 120)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert failed(result) == ["as it stands", "enough asked out"]


def test_a_control_that_learns_nothing_makes_it_inconclusive(runs: Path) -> None:
    result = audited(runs, pair_of(RunDirectory(runs / "again")), replace(QUICK, steps=1, draws=2))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert failed(result) == ["control caught"]


def test_it_is_made_by_default_where_somebody_asked_out(runs: Path, tmp_path: Path) -> None:
    usual = audits._usual
    assert all("forget" in usual(RunDirectory(runs / name)) for name in ("was", "again"))
    shutil.copytree(runs / "was", tmp_path / "plain", symlinks=True)
    shutil.rmtree(tmp_path / "plain" / "hospitals" / "hospital-2")
    assert usual(RunDirectory(tmp_path / "plain")) == set(audits.AUDITS) - {"forget"}


def test_a_run_whose_origin_is_gone_says_so(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "again", tmp_path / "again", symlinks=True)
    origin = json.loads((tmp_path / "again" / "forgotten.json").read_text())
    (tmp_path / "again" / "forgotten.json").write_text(json.dumps({**origin, "folder": str(tmp_path / "gone")}))
    with pytest.raises(RunError, match="is not there; put it back"):
        pair_of(RunDirectory(tmp_path / "again"))
