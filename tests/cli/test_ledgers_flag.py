"""`privfm train --ledgers`: commands that read a run's ledgers find them where many runs share them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from privfm_cli.main import main

from privfm.dp.ledger import Ledger

PLAN = """
[data]
source = "phantom"
patients = 30
image_size = 16
hospitals = 3
min_patients = 4

[model]
patch_size = 4
width = 16
depth = 1
heads = 2
init = "scratch"

[privacy]
epsilon = 4.0
clip_norm = 1.0
images_per_unit = 1
views = 1

[federation]
rounds = 1
local_steps = 1

[evaluation]
probe = false

[performance]
threads = 1
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, `one` and `two`, in the same `ledgers`, and a ledger of somebody else's among them."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "plan.toml").write_text(PLAN)
    for name in ("one", "two"):
        out = ["--out", str(folder / name), "--ledgers", str(folder / "ledgers")]
        assert main(["train", str(folder / "plan.toml"), *out]) == 0
    Ledger.create(folder / "ledgers" / "stranger.sqlite", "stranger").shut()
    return folder


def read(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_spending_is_the_lifetimes_and_of_the_runs_own_hospitals(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_run = read(capsys, "budget", "show", str(study / "one"))["hospitals"]
    assert [each["hospital"] for each in of_run] == ["hospital-1", "hospital-2", "hospital-3"]
    for hospital in of_run:
        assert [each["rounds_charged"] for each in hospital["runs"]] == [1, 1]
        assert hospital["epsilon"] > max(each["epsilon"] for each in hospital["runs"])
        assert hospital["epsilon_allowed"] is None  # the plan allows this to a run, not to both
    of_folder = read(capsys, "budget", "show", str(study / "ledgers"), "--delta", "1e-5")["hospitals"]
    assert [each["epsilon"] for each in of_folder] == [*(each["epsilon"] for each in of_run), 0.0]


def test_each_run_is_verified_stated_and_reported(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [json.loads((study / name / "run.json").read_text())["run"] for name in ("one", "two")]
    for name, other in (("one", names[1]), ("two", names[0])):
        checked = read(capsys, "budget", "verify", str(study / name))["ledgers"]
        assert [each["rounds_matched"] for each in checked] == [1, 1, 1]
        (row,) = read(capsys, "budget", "statement", str(study / name / "ledgers" / "hospital-2.sqlite"))["hospitals"]
        assert row["earlier_steps"] == 1
        said = read(capsys, "budget", "statement", str(study / name))["tuning_runs"]
        assert said[0] == f"Run {other}, 1 round at each of 3 hospitals; counted in epsilon spent."
        assert main(["report", str(study / name)]) == 0


def test_a_report_says_when_ledgers_have_gone_on_since(study: Path) -> None:
    pages, dates = {}, {}
    for name in ("one", "two"):
        assert main(["report", str(study / name)]) == 0
        pages[name] = (study / name / "report.html").read_text()
        dates[name] = json.loads((study / name / "privacy.json").read_text())["as_of"]
        assert f"for people: as of {dates[name]}." in pages[name]
    assert f"Ledgers have gone on.</strong> This page tells of {dates['one']}" in pages["one"]
    assert re.search(r"hospital-2 has spent epsilon \d\.\d+ by now, not \d\.\d+\.", pages["one"])
    assert "Ledgers have gone on" not in pages["two"]


def test_resuming_finds_the_ledgers_by_itself(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume = ["train", "--resume", "--out", str(study / "two")]
    assert main([*resume, "--ledgers", str(study / "ledgers")]) == 2
    assert "leave it out with --resume" in capsys.readouterr().err
    assert main(resume) == 0
    assert main(["train", "--resume", "--out", str(study / "one")]) == 4
    printed = capsys.readouterr().err.splitlines()
    assert "another run has used this ledger since" in printed[-1]


def test_a_plan_is_checked_against_lasting_ledgers(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["plan", "check", str(study / "plan.toml"), "--ledgers"]
    rooms = read(capsys, *check, str(study / "ledgers"))["rooms"]
    assert [(each["id"], each["new"], each["fits"]) for each in rooms] == [
        (f"hospital-{i}", False, True) for i in (1, 2, 3)
    ]
    assert all(each["epsilon_after"] > each["epsilon_before"] > 0 for each in rooms)
    capped = study / "capped"
    shutil.copytree(study / "ledgers", capped)
    assert main(["budget", "cap", str(capped / "hospital-2.sqlite"), "--epsilon", "5.5"]) == 0
    capsys.readouterr()
    assert main([*check, str(capped)]) == 3
    printed = capsys.readouterr()
    assert re.search(r"hospital-2 .* 5\.5 +\d+ +no", printed.out)
    assert "hospital-2: the lifetime cap has no room for the whole run; plan fewer rounds" in printed.err
    assert main([*check, str(study / "typo")]) == 2
    assert "no such folder; a run with that would begin new ledgers there" in capsys.readouterr().err


def test_a_file_is_no_folder_of_ledgers(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(study / "plan.toml")
    assert main(["train", plan, "--out", str(study / "three"), "--ledgers", plan]) == 2
    assert f"--ledgers {plan}: not a folder" in capsys.readouterr().err
    assert not (study / "three").exists()


def test_recovery_names_the_runs_that_it_charged(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = study / "recovered"
    shutil.copytree(study / "two", copied)
    assert main(["budget", "recover", str(copied), "hospital-3", "--seen", "40"]) == 0
    again = f"The run is over; state what it spent again with: privfm train --resume --out {copied}"
    assert again in capsys.readouterr().out
    done = read(capsys, "budget", "recover", str(study / "two"), "hospital-3", "--seen", "40")
    run = json.loads((study / "two" / "run.json").read_text())["run"]
    assert done["runs"] == {run: done["rounds_charged"]}
    assert done["rounds_charged"] == 3  # all that the run ever declared; the other run is over


def test_lasting_ledgers_are_verified_against_each_other(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = study / "copied"
    shutil.copytree(study / "ledgers", copied)
    assert main(["budget", "verify", str(copied)]) == 0
    assert capsys.readouterr().out.count("  whole  ") == 4
    (copied / "hospital-1.sqlite").rename(copied / "hospital-9.sqlite")
    assert main(["budget", "verify", str(copied)]) == 4
    assert "hospital-9.sqlite: is the ledger of hospital-1; give it back its name" in capsys.readouterr().err
    assert main(["budget", "verify", str(copied / "hospital-9.sqlite")]) == 0


def test_a_run_without_its_first_file_is_damaged_and_no_folder_of_ledgers(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = study / "broken"
    shutil.copytree(study / "one", copied, symlinks=True)
    (copied / "run.json").unlink()
    for command in (["budget", "verify"], ["budget", "statement"], ["audit"]):
        assert main([*command, str(copied)]) == 4
        assert "run.json: is missing; the run's folder is damaged" in capsys.readouterr().err


def test_a_damaged_plan_of_a_run_is_not_something_typed(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = study / "damaged"
    shutil.copytree(study / "two", copied, symlinks=True)
    (copied / "plan.toml").write_text("[privacy]\nepsilom = 4")
    for command in (
        ["budget", "verify", str(copied)],
        ["budget", "statement", str(copied)],
        ["budget", "show", str(copied)],
        ["report", str(copied)],
        ["train", "--resume", "--out", str(copied)],
    ):
        assert main(command) == 4
        assert "plan.toml: privacy.epsilom: unknown key; did you mean epsilon?" in capsys.readouterr().err
