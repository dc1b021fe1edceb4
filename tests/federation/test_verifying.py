"""A run's folder against its ledgers: every way in which they can differ is told in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privfm.dp.ledger import Ledger
from privfm.errors import LedgerError, VerificationError
from privfm.federation import verifying
from privfm.federation.directory import RunDirectory
from privfm.federation.observer import Observer
from privfm.federation.records import RoundRecord, RunResult
from privfm.federation.training import train
from privfm.federation.verifying import verify_run
from privfm.plan import Plan


@pytest.fixture
def directory(finished_run: RunResult, tmp_path: Path) -> RunDirectory:
    """A copy of a finished run of two rounds and three hospitals."""
    shutil.copytree(finished_run.out, tmp_path / "run")
    return RunDirectory.existing(tmp_path / "run")


def rewrite(directory: RunDirectory, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the record of a round."""
    path = directory.root / "rounds.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    change(records[number - 1])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def restore_empty(directory: RunDirectory, name: str, **changes: Any) -> None:
    """Put a ledger in place of a hospital's that has declared the run, or another one, and charged nothing."""
    path, run = directory.ledger(name), directory.facts().run
    with Ledger.open(path, read_only=True) as ledger:
        (declared,) = [record.declaration for record in ledger.runs()]
    path.unlink()
    wanted = {"run": run, "plan_hash": declared.plan_hash, "per_round": declared.per_round, "private": True, **changes}
    with Ledger.create(path, name) as ledger:
        ledger.open_run(rounds=declared.rounds, retry_rounds=declared.retry_rounds, **wanted)


def complaint(directory: RunDirectory, kind: type[VerificationError] = VerificationError) -> str:
    with pytest.raises(kind) as caught:
        verify_run(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_finished_run_matches_round_by_round(directory: RunDirectory) -> None:
    assert verify_run(directory) == {"hospital-1": 2, "hospital-2": 2, "hospital-3": 2}
    assert verify_run(directory, "hospital-2") == {"hospital-2": 2}


def test_a_run_that_is_going_on_can_be_verified(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """A round's transcript is in ledgers once the next begins; an open ledger can be read."""
    found: list[set[int]] = []

    class Verifying(Observer):
        def round_finished(self, record: RoundRecord) -> None:
            found.append(set(verify_run(RunDirectory.existing(tmp_path / "run")).values()))

    train(tiny_plan(evaluation={"probe": False}), tmp_path / "run", observer=Verifying())
    assert found == [{0}, {1}]


def test_another_transcript_is_told(directory: RunDirectory) -> None:
    rewrite(directory, 2, lambda record: record.update(transcript="00" * 32))
    assert "hospital-1.sqlite: its transcript of round 2 is not the one" in complaint(directory)


def test_who_is_not_in_the_sum_has_nothing_to_match(directory: RunDirectory) -> None:
    rewrite(directory, 1, lambda record: record.update(transcript="00" * 32, survivors=["hospital-2"]))
    assert verify_run(directory, "hospital-1") == {"hospital-1": 1}
    assert "hospital-2.sqlite: its transcript of round 1" in complaint(directory)


def test_a_missing_record_is_told(directory: RunDirectory) -> None:
    path = directory.root / "rounds.jsonl"
    path.write_text(path.read_text().splitlines()[1] + "\n")
    assert "rounds.jsonl: does not hold the 2 finished rounds" in complaint(directory)


def test_a_folder_that_went_back_is_told(directory: RunDirectory) -> None:
    directory.save_checkpoint(replace(directory.load_checkpoint(), rounds=1))
    assert "hospital-1.sqlite: released round 2, but the run's records end with round 1" in complaint(directory)


def test_a_record_after_the_checkpoint_does_not_count(directory: RunDirectory) -> None:
    path = directory.root / "rounds.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[1].replace('"round": 2', '"round": 3') + "\n")
    assert verify_run(directory)["hospital-1"] == 2


def test_spending_that_went_down_is_told(directory: RunDirectory) -> None:
    rewrite(directory, 2, lambda record: record["epsilon"].update({"hospital-3": 0.01}))
    assert "rounds.jsonl: hospital-3 has spent less after round 2 than before" in complaint(directory)


def test_a_ledger_that_came_from_a_backup_is_told_with_what_to_do(directory: RunDirectory) -> None:
    restore_empty(directory, "hospital-2")
    said = complaint(directory)
    assert "hospital-2.sqlite: stands at counter 0, and hospital-" in said
    assert said.endswith(f"privfm budget recover {directory.root} hospital-2")


def test_a_sum_that_was_never_charged_is_told(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_seen", lambda *_: {})
    restore_empty(directory, "hospital-2")
    assert "hospital-2.sqlite: never charged round 1, whose sum it is in" in complaint(directory)
    with Ledger.open(directory.ledger("hospital-2")) as ledger:
        ledger.recover(directory.facts().run, 1)
    assert "hospital-2.sqlite: has charged epsilon" in complaint(directory)
    with Ledger.open(directory.ledger("hospital-2")) as ledger:
        ledger.recover(directory.facts().run, 2**33)
    assert verify_run(directory)["hospital-2"] == 0


@pytest.mark.parametrize("change", [{"plan_hash": bytes(32)}, {"private": False}])
def test_a_ledger_that_declares_something_else_is_told(directory: RunDirectory, change: dict[str, Any]) -> None:
    restore_empty(directory, "hospital-3", **change)
    assert "hospital-3.sqlite: declares another plan or mechanism" in complaint(directory)


def test_a_ledger_with_less_noise_than_planned_is_told(directory: RunDirectory) -> None:
    with Ledger.open(directory.ledger("hospital-3"), read_only=True) as ledger:
        (event,) = ledger.runs()[0].declaration.per_round
    restore_empty(directory, "hospital-3", per_round=[replace(event, noise_multiplier=event.noise_multiplier / 2)])
    assert "hospital-3.sqlite: declares another plan or mechanism" in complaint(directory)


def test_a_ledger_of_another_run_is_told(directory: RunDirectory) -> None:
    restore_empty(directory, "hospital-3", run="another")
    assert "hospital-3.sqlite: knows nothing of run" in complaint(directory, LedgerError)


def test_a_changed_plan_is_told(directory: RunDirectory) -> None:
    path = directory.root / "plan.toml"
    path.write_text(path.read_text().replace("clip_norm = ", "clip_norm = 1"))
    assert complaint(directory).startswith(f"{path}: not the plan")
