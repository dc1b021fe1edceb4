"""A run's folder against its ledgers: every way in which they can differ is told in one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from privfm.dp.filter import RdpFilter
from privfm.dp.ledger import Ledger
from privfm.errors import LedgerError, RunError, VerificationError
from privfm.federation import verifying
from privfm.federation.directory import RunDirectory
from privfm.federation.network import load_network, save_network
from privfm.federation.observer import Observer
from privfm.federation.records import RoundRecord, RunResult
from privfm.federation.stating import state_run
from privfm.federation.training import train
from privfm.federation.verifying import verify_run
from privfm.plan import Plan
from privfm.report import write_report
from privfm.secagg import Identity, Roster
from privfm.secagg.roster import Member


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


def stopped_after_a_round(
    tiny_plan: Callable[..., Plan], folder: Path, look: Callable[[RunDirectory, RoundRecord], None]
) -> None:
    """Begin a run, look at it after its first round, and stop it."""

    class Looking(Observer):
        def round_finished(self, record: RoundRecord) -> None:
            look(RunDirectory.existing(folder / "run"), record)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_plan(evaluation={"probe": False}), folder / "run", observer=Looking())


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


def test_a_hospital_that_is_left_out_of_its_sum_is_told(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "threshold_of", lambda _: 2)
    rewrite(directory, 1, lambda record: record.update(survivors=["hospital-2", "hospital-3"]))
    assert "rounds.jsonl: round 1 leaves hospital-1 out, which is in its sum" in complaint(directory)


@pytest.mark.parametrize("survivors", [["hospital-2"], ["hospital-1", "hospital-2", "stranger"]])
def test_a_round_of_too_few_or_of_strangers_is_told(directory: RunDirectory, survivors: list[str]) -> None:
    rewrite(directory, 1, lambda record: record.update(survivors=survivors))
    assert "rounds.jsonl: round 1 names other hospitals than the plan, or too few" in complaint(directory)


def test_a_statement_is_not_made_of_a_ledger_that_went_back(directory: RunDirectory) -> None:
    with Ledger.open(directory.ledger("hospital-1")) as peer:
        peer.remember_peers({"hospital-2": (1 << 20, bytes(32))})
    with pytest.raises(VerificationError, match=r"hospital-2\.sqlite: stands at counter .* came from a backup"):
        state_run(directory)


def test_a_report_says_what_does_not_verify(directory: RunDirectory) -> None:
    assert "NOT VERIFIED" not in write_report(directory.root).read_text()
    edit(directory, "result.json", lambda it: it["hospitals"][0].update(epsilon=1.0))
    page = write_report(directory.root).read_text()
    assert "NOT VERIFIED" in page
    assert "result.json: hospitals is not what ledgers and records say" in page


def test_a_missing_record_is_told(directory: RunDirectory) -> None:
    path = directory.root / "rounds.jsonl"
    path.write_text(path.read_text().splitlines()[1] + "\n")
    assert "rounds.jsonl: does not hold the 2 finished rounds" in complaint(directory)


def test_a_folder_that_went_back_is_told(directory: RunDirectory) -> None:
    directory.save_checkpoint(replace(directory.load_checkpoint(), rounds=1))
    assert "hospital-1.sqlite: released round 2, but the run's records end with round 1" in complaint(directory)


def test_a_record_after_the_checkpoint_does_not_count(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """A crash may come between the two."""

    def append(directory: RunDirectory, record: RoundRecord) -> None:
        path = directory.root / "rounds.jsonl"
        path.write_text(path.read_text() + json.dumps(replace(record, round=record.round + 1).to_json()) + "\n")
        assert verify_run(directory)["hospital-1"] == 0

    stopped_after_a_round(tiny_plan, tmp_path, append)


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
    assert verify_run(directory, "hospital-2") == {"hospital-2": 0}
    said = complaint(directory)
    assert "privacy.json: says otherwise of hospital-2 than" in said
    assert said.endswith(f"privfm train --resume --out {directory.root}")


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


@pytest.mark.parametrize(
    "changes",
    [
        {"update_norm": 1.0},
        {"public_loss": 0.5},
        {"local_loss": [0.5, 0.1]},
        {"bytes_up": 1},
        {"attempt": 1},
        {"cohort": ["hospital-1", "hospital-2", "hospital-3", "hospital-3"]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_changed_record_of_a_finished_run_is_told(directory: RunDirectory, changes: dict[str, Any]) -> None:
    rewrite(directory, 2, lambda record: record.update(changes))
    assert f"{directory.root / 'rounds.jsonl'}: not what it was at the run's end, by " in complaint(directory)
    with pytest.raises(VerificationError, match=r"rounds\.jsonl"):
        verify_run(directory, "hospital-2")


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_from_another_model_than_was_charged_is_told(directory: RunDirectory, number: int) -> None:
    rewrite(directory, number, lambda record: record.update(model_hash="00" * 32))
    assert f"rounds.jsonl: round {number} started from another model by the ledger" in complaint(directory)


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "roster.json",
        "checkpoint.safetensors",
        "start.safetensors",
        "network.safetensors",
        "model.safetensors",
        "config.json",
        "privacy.json",
    ],
)
def test_a_file_that_is_missing_after_the_end_is_told(directory: RunDirectory, name: str) -> None:
    (directory.root / name).unlink()
    with pytest.raises(VerificationError, match=re.escape(name)):
        verify_run(RunDirectory.existing(directory.root))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "not the model of the last round"),
        ("network.safetensors", "not the network of the last round"),
        ("start.safetensors", "not what it was at the run's end"),
        ("checkpoint.safetensors", "not what it was at the run's end"),
    ],
)
def test_changed_weights_are_told(directory: RunDirectory, name: str, said: str) -> None:
    path = directory.root / name
    with safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    key = next(key for key in sorted(tensors) if "weight" in key or key == "model")
    tensors[key].view(-1)[0] += 1e-3
    save_file(tensors, path, metadata)
    assert complaint(directory).startswith(f"{path}: {said}")


def test_a_start_that_the_first_round_did_not_have_is_told_before_the_end(
    tiny_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    def replace_start(directory: RunDirectory, _: RoundRecord) -> None:
        learner = load_network(directory.root, "start.safetensors")
        with torch.no_grad():
            next(learner.network.parameters()).add_(1.0)
        save_network(learner.network, directory.root / "start.safetensors")
        assert "start.safetensors: not the network that round 1 started from" in complaint(directory)

    stopped_after_a_round(tiny_plan, tmp_path, replace_start)


def test_a_roster_of_others_is_told_before_the_end(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    def replace_roster(directory: RunDirectory, _: RoundRecord) -> None:
        path = directory.root / "roster.json"
        keys = {member.name: Identity.generate(member.name, bytes(32)).public for member in _members(path)[:1]}
        path.write_bytes(Roster.first("another", keys).to_json())
        assert "roster.json: not the roster of this run's hospitals" in complaint(directory)
        path.write_text("{}")
        assert "roster.json: roster file is not sound" in complaint(directory, RunError)

    stopped_after_a_round(tiny_plan, tmp_path, replace_roster)


def _members(roster: Path) -> Sequence[Member]:
    return Roster.from_json(roster.read_bytes()).members


def edit(directory: RunDirectory, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file."""
    content = directory.read_json(name)
    change(content)
    directory.write_json(name, content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda it: it["hospitals"][0].update(epsilon_spent=1.0), "hospitals is not what plan and ledgers say"),
        (lambda it: it["hospitals"][1].update(nominal_units=600), "hospitals is not what plan and ledgers say"),
        (lambda it: it["hospitals"][2].update(lifetime_cap=3.0), "says otherwise of hospital-3 than"),
        (lambda it: it["hospitals"][2]["events"][0].update(steps=2), "says otherwise of hospital-3 than"),
        (lambda it: it["hospitals"].pop(), "is not about this run's hospitals"),
        (lambda it: it.update(unit="image"), "unit is not what plan and ledgers say"),
        (lambda it: it.update(data_touches=[]), "data_touches is not what plan and ledgers say"),
        (lambda it: it.update(as_of="2026-01-01T00:00:00+00:00"), "is not the date of an entry"),
        (lambda it: it.update(run="00" * 16), "run is not what plan and ledgers say"),
        (lambda it: it.update(privfm_version="0", randomness="dice"), "is by privfm 0, and the run by"),
        (lambda it: it.pop("unit"), "the run's folder is damaged"),
    ],
)
def test_a_changed_statement_is_told(directory: RunDirectory, change: Callable[[Any], Any], said: str) -> None:
    edit(directory, "privacy.json", change)
    told = complaint(directory)
    assert told.startswith(f"{directory.root / 'privacy.json'}: ")
    assert said in told


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["hospitals"][0].update(epsilon=1.0),
        lambda it: it["hospitals"][0].update(steps=2),
        lambda it: it.update(rounds=3),
        lambda it: it.update(private=False),
        lambda it: it["public_loss"].update(trained=0.1),
        lambda it: it.update(public_loss={}),
        lambda it: it.update(public_loss=None),
        lambda it: it["public_loss"].update(other=0.1),
        lambda it: it.pop("seconds"),
        lambda it: it.update(epsilon=1.0),
    ],
)
def test_a_changed_result_is_told(directory: RunDirectory, change: Callable[[Any], Any]) -> None:
    edit(directory, "result.json", change)
    assert complaint(directory).startswith(f"{directory.root / 'result.json'}: ")


@pytest.mark.parametrize("name", ["run.json", "roster.json"])
def test_a_change_to_who_and_what_a_run_was_is_told(directory: RunDirectory, name: str) -> None:
    path = directory.root / name
    path.write_text(path.read_text().replace('"', ' "', 1))
    assert f"{path}: not what it was at the run's end" in complaint(directory)


def test_a_statement_of_before_a_later_cap_or_recovery_still_holds(directory: RunDirectory) -> None:
    with Ledger.open(directory.ledger("hospital-1")) as ledger:
        ledger.set_cap(RdpFilter.for_cap(50.0, 1e-5))
        ledger.recover(directory.facts().run, ledger.counter + 10)
    assert verify_run(directory)["hospital-1"] == 2


def test_a_ledger_that_never_heard_of_the_end_is_told(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "outcome", lambda *_: {})
    assert "hospital-1.sqlite: does not know that the run is over" in complaint(directory)


def test_what_a_run_left_is_put_on_record_once(directory: RunDirectory) -> None:
    rewrite(directory, 2, lambda record: record.update(update_norm=1.0))
    with (
        Ledger.open(directory.ledger("hospital-1")) as ledger,
        pytest.raises(LedgerError, match=r"ended with another rounds\.jsonl; restore what it left"),
    ):
        ledger.conclude(directory.facts().run, directory.outcome())


def test_resuming_a_finished_run_changes_nothing(directory: RunDirectory) -> None:
    with Ledger.open(directory.ledger("hospital-1"), read_only=True) as ledger:
        head = ledger.head()
    train(directory.plan, directory.root, resume=True)
    assert verify_run(directory)["hospital-1"] == 2
    with Ledger.open(directory.ledger("hospital-1"), read_only=True) as ledger:
        assert ledger.head() == head


@pytest.mark.parametrize(
    "name",
    [
        "plan.toml",
        "run.json",
        "rounds.jsonl",
        "checkpoint.safetensors",
        "network.safetensors",
        "model.safetensors",
        "config.json",
        "privacy.json",
    ],
)
def test_a_damaged_file_is_something_that_was_verified(directory: RunDirectory, name: str) -> None:
    (directory.root / name).write_bytes(b"\xff{")
    told = complaint(directory)
    assert name in told
    assert "damaged" in told or "not what it was" in told
