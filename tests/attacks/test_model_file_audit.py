"""A model without its run: told apart where it was overfitted, and what is wrong is said in a line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from privfm_attacks import run as audits
from privfm_attacks.claims import Claim
from privfm_attacks.membership import MembershipEffort
from privfm_attacks.model_file import ModelFile, audit_model
from privfm_attacks.overfitting import overfit
from privfm_attacks.verdicts import Verdict
from privfm_cli.main import main

from privfm.data import load_images
from privfm.federation.network import build_learner
from privfm.federation.observer import Observer
from privfm.models import save_backbone
from privfm.plan import parse_plan

SHAPE = {"backbone": "vit_tiny_patch16_224", "patch_size": 4, "width": 32, "depth": 2, "heads": 2}
LITTLE = MembershipEffort(patients=50, images=2, draws=2, control_images=40, control_steps=20, control_seconds=20.0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of fifty patients and of fifty others, and an encoder that saw nothing but the first, for long."""
    root = tmp_path_factory.mktemp("model")
    for seed, side in enumerate(("members", "others")):
        images = load_images("phantom", image_size=16, patients=50, seed=seed)
        for patient, rows in zip(images.patients, images.by_patient(), strict=True):
            folder = root / side / f"{side}-{patient}"
            folder.mkdir(parents=True)
            for number, pixels in enumerate(images.load(rows[:2])):
                Image.fromarray((pixels[0] * 255).astype(np.uint8)).save(folder / f"{number}.png")
    model = {**SHAPE, "init": "scratch", "trainable": "all"}
    learner = build_learner(parse_plan({"data": {"source": "phantom", "image_size": 16}, "model": model}))
    seen = load_images(str(root / "members"), image_size=16, channels=1)
    overfit(learner, torch.from_numpy(seen.load(np.arange(len(seen)))), 2500, 60.0, np.random.default_rng(0))
    (root / "model").mkdir()
    save_backbone(learner.network.backbone, root / "model")
    return root


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "QUICK_MEMBERSHIP", LITTLE)


def test_an_overfitted_encoder_is_told_apart_by_itself(folders: Path) -> None:
    effort = MembershipEffort(patients=50, images=2, draws=4, control_images=60, control_steps=500, control_seconds=20)
    model = ModelFile(folders / "model", folders / "members", folders / "others", Claim())
    result = audit_model(model, effort, Observer())
    assert result.local
    assert result.verdict is Verdict.LEAK
    assert result.figures["auc"] > 0.75


@pytest.mark.usefixtures("quickly")
def test_what_may_be_shared_is_the_verdict(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["audit", str(folders / "model" / "model.safetensors"), "--data", str(folders / "members")]
    code = main([*asked, "--held-out", str(folders / "others"), "--epsilon", "8", "--quick"])
    assert code == 0  # of epsilon 8 nearly all is allowed, and the control of a moment sees nothing
    printed = capsys.readouterr()
    assert "membership: INCONCLUSIVE" in printed.out
    assert "for want of its run: mechanism, canaries" in printed.err
    shared = json.loads((folders / "model" / "audit.json").read_text())
    (audit,) = shared["audits"]
    assert audit["figures"] == {}
    kept = folders / "model" / "hospitals"
    assert kept.stat().st_mode & 0o777 == 0o700
    assert "auc" in json.loads((kept / "audit.json").read_text())["audits"][0]["figures"]
    assert "STAYS AT THE HOSPITAL" in (kept / "audit.html").read_text()
    assert not (folders / "model" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model", "--data", "members", "--held-out", "others", "--epsilon", "nan"], "--epsilon nan: must be from 0"),
        (["model", "--data", "members", "--held-out", "others", "--only", "canaries"], "membership alone"),
        (["model", "--data", "members"], "privfm audit MODEL --data DIR --held-out DIR"),
        (["model", "--data", "members", "--held-out", "members"], "is both in"),
        (["nowhere", "--data", "members", "--held-out", "others"], "nowhere"),
        (["model", "--data", "members", "--held-out", "elsewhere"], "elsewhere"),
    ],
)
@pytest.mark.usefixtures("quickly")
def test_bad_input_is_a_line(
    folders: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folders)
    assert main(["audit", *arguments, "--quick"]) == 2
    assert said in capsys.readouterr().err


def test_of_a_run_more_can_be_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").touch()
    assert main(["audit", str(tmp_path), "--data", "a", "--held-out", "b"]) == 2
    assert "of which all can be audited: privfm audit" in capsys.readouterr().err
