"""`privfm forget`: what a person reads, what a program reads, and what neither is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from privfm_cli.main import main

from privfm.federation.training import train
from privfm.plan import parse_plan

PATIENTS = {"north": ["zoe-1963", "n2"], "south": ["s1", "s2"], "west": ["w1", "w2"]}
TINY = {
    "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
    "privacy": {"images_per_unit": 1, "views": 1, "clip_norm": 1.0},
    "federation": {"rounds": 1, "local_steps": 1, "retry_rounds": 0},
    "performance": {"device": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a finished run on them, `run`."""
    torch.set_num_threads(1)
    root, rng = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    for hospital, names in PATIENTS.items():
        for name in names:
            (root / "images" / hospital / name).mkdir(parents=True)
            pixels = rng.integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / hospital / name / "0.png")
    train(parse_plan({**TINY, "data": {"source": str(root / "images"), "image_size": 16}}), root / "run")
    return root


def test_what_is_typed_wrongly_ends_in_one_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        ("--hospital", "east"): "its hospitals are north, south, west",
        ("--hospital", "north", "--patient", "zoe"): "north has no patient of that identifier",
        ("--hospital", "north", "--deleted"): "--deleted: goes with --patient",
        ("--hospital", "north", "--out", str(study)): "exists already",
        (): "missing option '--hospital'",
    }
    for words, expected in wrong.items():
        assert main(["forget", str(study / "run"), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
    assert not list((study / "run").rglob("forgotten.json"))
    assert main(["forget", str(study / "images"), "--hospital", "north"]) == 2
    assert "not a run's folder" in capsys.readouterr().err


def test_a_patient_asks_out_and_is_told_what_holds(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["forget", str(study / "run"), "--hospital", "north", "--patient", "zoe-1963"]
    assert main(ask) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Noted in the ledger of north, with no name." in said
    assert "nothing is refunded" in said
    assert "the odds of that conclusion are at most e^" in said
    assert "north is in the sums from round 1 on" in said
    assert str(study / "images" / "north" / "zoe-1963" / "0.png") in said
    assert (study / "images" / "north" / "zoe-1963" / "0.png").exists()
    assert main([*ask, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["what"], told["known"], told["private"], told["again"]) == ("patient", True, True, None)
    assert told["epsilon"] > 0
    assert main(["budget", "show", str(study / "run")]) == 0
    shown = capsys.readouterr().out
    assert "north: somebody asked out; what was spent before stays spent" in shown
    assert "zoe" not in shown
    assert main(["budget", "show", str(study / "run"), "--json"]) == 0
    assert [each["asked_out"] for each in json.loads(capsys.readouterr().out)["hospitals"]] == [True, False, False]


def test_training_again_says_what_it_cost_and_adds_up(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["forget", str(study / "run"), "--hospital", "north", "--patient", "zoe-1963", "--out", str(study / "new")]
    assert main([*ask, "--json"]) == 0
    printed = capsys.readouterr()
    again = json.loads(printed.out)["again"]
    assert again["out"] == str(study / "new")
    assert "zoe" not in printed.err
    assert main(["budget", "show", str(study / "new"), "--json"]) == 0
    for hospital in json.loads(capsys.readouterr().out)["hospitals"]:
        assert [each["rounds_charged"] for each in hospital["runs"]] == [1, 1]
    for name in ("run", "new"):
        assert main(["budget", "verify", str(study / name)]) == 0
    assert main(["report", str(study / "new")]) == 0
    page = (study / "new" / "report.html").read_text()
    assert "Somebody asked out at north" in page
    assert "zoe" not in page
    assert main(["forget", str(study / "new"), "--hospital", "south", "--out", str(study / "two")]) == 2
    assert "2 of 3 hospitals are left" in capsys.readouterr().err
    assert not (study / "new" / "hospitals" / "south" / "forgotten.json").exists()  # nothing is noted that is refused


def test_without_noise_there_is_no_guarantee_and_that_is_said(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"source": str(study / "images"), "image_size": 16}
    train(parse_plan({**TINY, "privacy": {**TINY["privacy"], "dp": False}, "data": data}), tmp_path / "bare")
    assert main(["forget", str(tmp_path / "bare"), "--hospital", "south", "--patient", "s1"]) == 0
    said = capsys.readouterr().out
    assert "NO GUARANTEE holds" in said
    assert "withdraw it" in said
    assert "odds" not in said
