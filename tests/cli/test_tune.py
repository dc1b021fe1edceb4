"""`privfm tune`: says what a search costs, asks, and shows what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from privfm_cli.main import main

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
clip_norm = 1.0
images_per_unit = 1
views = 1

[federation]
local_steps = 1

[performance]
threads = 1
"""

TRY = ["--try", "optimizer.learning_rate=0.003,0.01", "--rounds", "1", "--epsilon", "4"]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "plan.toml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_search_asks_before_it_spends(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["tune", "plan.toml", *TRY, "--ledgers", "ledgers", "--out", "search"]
    assert main(asked) == 2
    printed = capsys.readouterr()
    heading, *rows = printed.out.splitlines()
    assert "of all 2" in heading
    assert len([row for row in rows if row.startswith("hospital-")]) == 3
    assert "--yes: nothing was trained or spent" in printed.err
    assert {path.name for path in study.iterdir()} == {"plan.toml"}
    assert main([*asked, "--json"]) == 2
    cost = json.loads(capsys.readouterr().out)
    assert all(3.98 <= each["epsilon_search"] <= 4.0 for each in cost["hospitals"])
    assert main([*asked, "--json", "--total-epsilon", "2"]) == 2
    cheaper = json.loads(capsys.readouterr().out)
    assert all(1.99 <= each["epsilon_search"] <= 2.0 for each in cheaper["hospitals"])


def test_a_search_leaves_runs_that_other_commands_read(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "plan.toml", *TRY, "--ledgers", "ledgers", "--out", "search", "--yes"]) == 0
    words = capsys.readouterr().out
    assert main(["tune", "--resume", "--out", "search", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert f"Best on public images: {found['best']}, optimizer.learning_rate=" in words
    assert [each["values"] for each in found["trials"]] == [{"optimizer.learning_rate": rate} for rate in (0.003, 0.01)]
    best = Path("search") / found["best"]
    assert (best / "report.html").exists()
    assert main(["budget", "verify", str(best)]) == 0
    assert main(["budget", "show", "ledgers", "--json"]) == 0
    *_, shown = capsys.readouterr().out.partition("{")
    spent = {each["hospital"]: each["epsilon"] for each in json.loads("{" + shown)["hospitals"]}
    assert all(spent[each["id"]] <= each["epsilon_search"] for each in found["hospitals"])
    assert main(["tune", "--resume", "--out", "search", *TRY]) == 2
    assert "the search knows what is tried" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ledgers", "l"], "--out: say where"),
        (["--resume"], "--resume: say which search"),
        (["--resume", "--out", "nowhere"], "no search to go on with"),
        (["--out", "s", *TRY], "--ledgers: say which"),
        (["--out", "s", "--ledgers", "l"], "--try: say what to try"),
        (["--out", "s", "--ledgers", "l", "--try", "optimizer.learning_rate"], "--try optimizer.learning_rate: give a"),
        (["--out", "s", "--ledgers", "l", "--try", "optimizer.name="], "--try optimizer.name=: has no values"),
        (["--out", "s", "--ledgers", "l", "--try", "optimizer.name=sgd"], "one value is no search; give two or more"),
        (["--out", "s", "--ledgers", "l", *TRY, *TRY], "a key is there twice"),
        (["--out", "plan.toml", "--ledgers", "l", *TRY], "already there"),
        (["--out", "s", "--ledgers", "l", *TRY, "--total-epsilon", "0"], "--total-epsilon 0: must be above 0"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(
    study: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["tune", "plan.toml", *arguments] if "--resume" not in arguments else ["tune", *arguments]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("privfm: error: ")
    assert says in last
    assert {path.name for path in study.iterdir()} == {"plan.toml"}
