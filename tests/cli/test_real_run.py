"""From the command line to a run's folder and back: the smallest real run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from privfm_cli.main import main

PLAN = """
[model]
patch_size = 8
width = 24
depth = 1
heads = 2
init = "scratch"

[privacy]
images_per_unit = 1
views = 1

[performance]
threads = 1
"""

FILES = {
    "plan.toml",
    "model.safetensors",
    "config.json",
    "rounds.jsonl",
    "privacy.json",
    "report.html",
    "result.json",
    "ledgers",
    "hospitals",
}


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "tiny.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture(scope="module")
def run(plan_file: Path) -> tuple[Path, str, str]:
    """A finished run's folder, and what was written to standard output and standard error."""
    out = plan_file.parent / "run"
    command = ["train", str(plan_file), "--rounds", "2", "--out", str(out), "--hospitals", "3", "--no-probe", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "privfm_cli.main", *command], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


def test_the_result_is_one_json_object(run: tuple[Path, str, str]) -> None:
    out, printed, _ = run
    result: dict[str, Any] = json.loads(printed)
    assert result["model"] == str(out / "model.safetensors")
    assert result["rounds"] == 2
    assert result["seconds"] > 0
    assert result["private"] is True
    assert len(result["hospitals"]) == 3
    wanted = {"id", "nominal_units", "sample_rate", "noise_multiplier", "steps", "epsilon", "delta"}
    assert all(wanted <= hospital.keys() for hospital in result["hospitals"])
    assert all(0 < hospital["epsilon"] <= hospital["epsilon_allowed"] for hospital in result["hospitals"])


def test_progress_is_plain_lines_on_standard_error(run: tuple[Path, str, str]) -> None:
    _, _, progress = run
    assert "\x1b" not in progress
    assert re.search(
        r"^round 2/2  public loss \d\.\d+  epsilon so far .*, 8 allowed  0 s left$", progress, re.MULTILINE
    )


def test_the_folder_is_whole(run: tuple[Path, str, str]) -> None:
    assert {path.name for path in run[0].iterdir()} >= FILES


def test_the_report_can_be_made_again(run: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    page = run[0] / "report.html"
    before = page.read_text()
    page.unlink()
    assert main(["report", str(run[0])]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text() == before
    assert before.count("data:image/png;base64,") == 24
    assert "NOT PRIVATE" not in before


def test_the_ledgers_agree_with_the_result(run: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(run[1])
    assert main(["budget", "show", str(run[0]), "--json"]) == 0
    shown = {each["hospital"]: each["epsilon"] for each in json.loads(capsys.readouterr().out)["hospitals"]}
    assert shown == {each["id"]: each["epsilon"] for each in result["hospitals"]}
    assert main(["budget", "verify", str(run[0])]) == 0


def test_the_summary_names_commands_that_work(run: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(run[0]), "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "epsilon spent" in printed
    _, _, commands = printed.partition("Next\n")
    typed = [shlex.split(line) for line in commands.splitlines()]
    assert len(typed) == 4
    for program, *arguments in typed:
        assert program == "privfm"
        shorter = ["--only", "ledgers"] if arguments[0] == "audit" else []  # the others take minutes
        assert main([*arguments, *shorter]) == 0


def test_checking_a_plan_says_what_the_run_then_does(
    run: tuple[Path, str, str], plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "check", str(plan_file), "--rounds", "2", "--hospitals", "3", "--no-probe"]
    assert main([*arguments, "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert [each["noise_multiplier"] for each in checked["hospitals"]] == [
        each["noise_multiplier"] for each in json.loads(run[1])["hospitals"]
    ]
    assert [each["epsilon"] for each in checked["hospitals"]] == [
        each["epsilon"] for each in json.loads(run[1])["hospitals"]
    ]
    assert main(arguments) == 0
    words = capsys.readouterr().out
    assert "Can it learn?" in words
    assert "0 of 3 hospitals; 3 must finish" in words


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_that_works(plan_file: Path) -> None:
    out = plan_file.parent / "interrupted run"
    command = ["train", str(plan_file), "--out", str(out), "--rounds", "60", "--hospitals", "3", "--no-probe"]
    with subprocess.Popen(
        [sys.executable, "-m", "privfm_cli.main", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background parent ignores Ctrl-C
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        while not process.stderr.readline().startswith("round 2/"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        *_, last = process.stderr.readlines()
        assert process.stdout.read() == ""
        assert process.wait(60) == 130
    assert last == f"privfm: interrupted; go on with: privfm train --out {shlex.quote(str(out))} --resume\n"
    finished = len((out / "rounds.jsonl").read_text().splitlines())
    with subprocess.Popen(
        [sys.executable, "-m", "privfm_cli.main", *shlex.split(last)[6:]], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        first = next(line for line in lines if line.startswith("round "))
        process.kill()
    assert first.startswith(f"round {finished + 1}/60")


def test_verifying_a_run_compares_it_with_its_ledgers(
    run: tuple[Path, str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    ledgers = read_json(capsys, "budget", "verify", str(copy))["ledgers"]
    assert [each["rounds_matched"] for each in ledgers] == [2, 2, 2]
    (alone,) = read_json(capsys, "budget", "verify", str(copy / "ledgers" / "hospital-2.sqlite"))["ledgers"]
    assert alone == ledgers[1]
    assert main(["budget", "verify", str(copy)]) == 0
    assert "hospital-1  whole  2 rounds as in the run's records" in capsys.readouterr().out
    records = copy / "rounds.jsonl"
    records.write_text(re.sub(r'"transcript": "...', '"transcript": "000', records.read_text()))
    assert main(["budget", "verify", str(copy)]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "its transcript of round 1 is not the one in rounds.jsonl" in printed.err
    assert printed.err.count("\n") == 1


def test_the_statement_is_the_one_that_the_run_left(
    run: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    left = json.loads((run[0] / "privacy.json").read_text())
    told = read_json(capsys, "budget", "statement", str(run[0]))
    assert told | {"audits": []} == left  # what was audited since, it tells as well
    (row,) = read_json(capsys, "budget", "statement", str(run[0] / "ledgers" / "hospital-2.sqlite"))["hospitals"]
    assert row == left["hospitals"][1]
    assert main(["budget", "statement", str(run[0])]) == 0
    title, *_ = capsys.readouterr().out.splitlines()
    assert title == f"Privacy statement of run {left['run']}"


def test_a_statement_is_made_of_what_ledgers_say_now(
    run: tuple[Path, str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    left = json.loads((copy / "privacy.json").read_text())["hospitals"][0]["epsilon_spent"]
    assert main(["budget", "recover", str(copy), "hospital-1", "--seen", "40"]) == 0
    capsys.readouterr()
    assert read_json(capsys, "budget", "statement", str(copy))["hospitals"][0]["epsilon_spent"] > left
    plan = copy / "plan.toml"
    plan.write_text(plan.read_text().replace("clip_norm = ", "clip_norm = 1"))
    assert main(["budget", "statement", str(copy)]) == 4
    assert f"{plan}: not the plan that the run was begun with" in capsys.readouterr().err


def test_recovering_a_hospital_charges_only_what_was_lost(
    run: tuple[Path, str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    assert main(["budget", "recover", str(copy), "hospital-1"]) == 0
    assert "nothing was lost; nothing charged" in capsys.readouterr().out
    counter = read_json(capsys, "budget", "recover", str(copy), "hospital-1", "--seen", "40")
    assert (counter["hospital"], counter["seen"]) == ("hospital-1", 40)
    assert 0 < counter["rounds_charged"] < 40
    assert counter["counter"] > 40
    assert main(["budget", "recover", str(copy), "nobody"]) == 2
    assert "nobody: not a hospital of this run" in capsys.readouterr().err


def read_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed
