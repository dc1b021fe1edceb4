"""`kill -9` at any moment: the run goes on, and the ledgers never counted less than was released."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from privfm.dp.ledger import Ledger
from privfm.federation.directory import RunDirectory
from privfm.federation.verifying import verify_run
from privfm.plan import Plan

SCRIPT = """
import sys, tomllib, torch
from pathlib import Path
from privfm.federation.observer import Observer
from privfm.federation.training import train
from privfm.plan import parse_plan

class Loud(Observer):
    def stage(self, text): print(text, flush=True)

torch.set_num_threads(1)
out = Path(sys.argv[2])
stored = out / "plan.toml"
plan = parse_plan(tomllib.loads((stored if stored.exists() else Path(sys.argv[1])).read_text()))
train(plan, out, resume=stored.exists(), observer=Loud())
"""


def start(plan: Path, out: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(plan), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def kill_while_training(plan: Path, out: Path, seconds: float) -> bool:
    """Let the run train for some seconds, kill it, and return whether it was still at it."""
    process = start(plan, out)
    for line in process.stdout or ():
        if line.startswith("training"):
            break
    time.sleep(seconds)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive


def charged_and_released(out: Path) -> list[tuple[int, int]]:
    """For every hospital the rounds that its ledger charged, and those whose sum the coordinator has."""
    directory = RunDirectory(out)
    released = directory.load_checkpoint().rounds
    pairs = []
    for path in sorted((out / "ledgers").glob("*.sqlite")):
        with Ledger.open(path, read_only=True) as ledger:
            ledger.verify()
            pairs.append((sum(record.charged for record in ledger.runs()), released))
    return pairs


def crash_and_finish(tiny_plan: Callable[..., Plan], folder: Path, kills: int) -> None:
    plan = tiny_plan(federation={"rounds": 6, "local_steps": 1, "retry_rounds": kills}, evaluation={"probe": False})
    (folder / "plan.toml").write_text(plan.to_toml())
    out, moments = folder / "run", random.Random(5)
    for _ in range(kills):
        if not kill_while_training(folder / "plan.toml", out, moments.uniform(0.0, 1.5)):
            break
        assert all(charged >= released for charged, released in charged_and_released(out))
        verify_run(RunDirectory.existing(out))
    process = start(folder / "plan.toml", out)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert [released for _, released in charged_and_released(out)] == [6, 6, 6]
    assert all(6 <= charged <= 6 + kills for charged, _ in charged_and_released(out))
    assert all(matched >= 5 for matched in verify_run(RunDirectory.existing(out)).values())


def test_three_kills(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    crash_and_finish(tiny_plan, tmp_path, 3)


@pytest.mark.slow
def test_twelve_kills(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    crash_and_finish(tiny_plan, tmp_path, 12)


@pytest.mark.slow
@pytest.mark.parametrize("ledgers", [[], ["--lasting"]], ids=["ledgers of its own", "lasting ledgers"])
def test_two_hundred_kills(ledgers: list[str]) -> None:
    """At any instruction: each kill is followed by the checks of `benchmarks/kills.py`, which end it when one fails."""
    script = Path(__file__).parents[2] / "benchmarks" / "kills.py"
    command = [sys.executable, str(script), "--kills", "200", "--reserve", "60", "--json", *ledgers]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 200
    assert found["runs_finished"] == found["runs"] >= 1
    assert found["most_of_a_reserve_used"] <= 60
    for hospital in found["hospitals"].values():
        assert hospital["released"] == found["runs"] * found["rounds"] <= hospital["charged"]
        assert hospital["steps_made"] <= hospital["steps_charged"]
