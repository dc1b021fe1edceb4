"""Ledgers that many runs use one after the other: nothing that one run spent is forgotten in the next."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from privfm.dp.account import EPOCH
from privfm.dp.accounting import epsilon
from privfm.dp.chain import ChainFile
from privfm.dp.filter import RdpFilter
from privfm.dp.ledger import Ledger
from privfm.errors import BudgetExceeded, InputError, LedgerError, VerificationError
from privfm.federation.directory import RunDirectory
from privfm.federation.observer import Observer
from privfm.federation.records import RoundRecord, RunResult
from privfm.federation.recovering import recover_hospital
from privfm.federation.stating import state_run
from privfm.federation.training import train
from privfm.federation.verifying import verify_run
from privfm.plan import Plan

NAMES = [f"hospital-{i}" for i in (1, 2, 3)]


class StopAfterRound(Observer):
    """Interrupts a run once its first round is over."""

    def round_finished(self, record: RoundRecord) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def plan(tiny_plan: Callable[..., Plan]) -> Plan:
    return tiny_plan(evaluation={"probe": False}, privacy={"images_per_unit": 2, "views": 1, "clip_norm": 1.0})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "study" / "ledgers"


def run(plan: Plan, folder: Path, name: str) -> RunResult:
    return train(plan, folder.parent / name, ledgers=folder)


def interrupted(plan: Plan, folder: Path, name: str) -> RunDirectory:
    with pytest.raises(KeyboardInterrupt):
        train(plan, folder.parent / name, ledgers=folder, observer=StopAfterRound())
    return RunDirectory.existing(folder.parent / name)


def state(folder: Path) -> dict[str, tuple[int, bytes, int]]:
    """Of every ledger its counter, its newest hash, and how many runs it knows."""
    found = {}
    for path in sorted(folder.glob("*.sqlite")):
        with Ledger.open(path, read_only=True) as ledger:
            found[ledger.hospital] = ledger.counter, ledger.head(), len(ledger.runs())
    return found


def test_a_second_run_goes_on_where_the_first_ended(plan: Plan, folder: Path) -> None:
    first = run(plan, folder, "first")
    after_first = state(folder)
    second = run(plan, folder, "second")
    after_second = state(folder)
    assert list(after_second) == NAMES
    for name in NAMES:
        assert after_second[name][0] > after_first[name][0] > 0
        assert after_second[name][2] == 2
    for result in (first, second):
        assert verify_run(RunDirectory.existing(result.out)) == dict.fromkeys(NAMES, 2)
        assert result.hospitals[0].steps == 4
    facts = [RunDirectory.existing(result.out).facts() for result in (first, second)]
    statement = json.loads((second.out / "privacy.json").read_text())
    with Ledger.open(folder / "hospital-1.sqlite", read_only=True) as ledger:
        both = epsilon(ledger.events(), plan.privacy.delta)
    assert statement["hospitals"][0]["epsilon_spent"] == both > statement["hospitals"][0]["epsilon_run"]
    assert facts[0].run in statement["tuning_runs"][0]
    assert facts[1].run not in "".join(statement["tuning_runs"])
    assert facts[1].run in state_run(RunDirectory(first.out)).tuning_runs[0]


def test_a_cap_refuses_a_run_before_anything_is_kept(plan: Plan, folder: Path) -> None:
    first = run(plan, folder, "first")
    with Ledger.open(folder / "hospital-3.sqlite") as ledger:
        ledger.set_cap(RdpFilter.for_cap(first.hospitals[2].epsilon * 1.2, plan.privacy.delta))
    before = state(folder)
    with pytest.raises(
        BudgetExceeded, match=rf"{folder}/hospital-3.sqlite: the lifetime cap .* plan fewer rounds"
    ) as no:
        run(plan, folder, "second")
    assert state(folder) == before
    assert not (folder.parent / "second").exists()
    told = float(str(no.value).rpartition("--epsilon ")[2])
    privacy = plan.privacy.model_copy(update={"epsilon": told})
    assert run(plan.model_copy(update={"privacy": privacy}), folder, "second").hospitals[2].epsilon <= told


def test_ledgers_that_are_begun_are_told(plan: Plan, folder: Path) -> None:
    """Of a mistyped folder all are new, and what was spent before would not be counted."""
    said: list[str] = []

    class Hearing(Observer):
        def warn(self, text: str) -> None:
            said.append(text)

    for name in ("first", "second"):
        train(plan, folder.parent / name, ledgers=folder, observer=Hearing())
    begun = [each for each in said if "new ledgers" in each]
    assert begun == [f"--ledgers {folder}: new ledgers are begun there, with nothing spent, for {', '.join(NAMES)}"]


def test_an_interrupted_run_goes_on_in_its_ledgers(plan: Plan, folder: Path) -> None:
    run(plan, folder, "first")
    directory = interrupted(plan, folder, "second")
    result = train(directory.plan, directory.root, resume=True)
    assert [hospital.steps for hospital in result.hospitals] == [4, 4, 4]
    assert verify_run(directory) == dict.fromkeys(NAMES, 2)


def test_a_run_does_not_go_on_after_another_used_its_ledgers(plan: Plan, folder: Path) -> None:
    older = interrupted(plan, folder, "older")
    newer = interrupted(plan, folder, "newer")
    before = state(folder)
    with pytest.raises(LedgerError, match="another run has used this ledger since"):
        train(older.plan, older.root, resume=True)
    assert state(folder) == before
    train(newer.plan, newer.root, resume=True)


def test_a_ledger_of_another_unit_is_not_used(tiny_plan: Callable[..., Plan], plan: Plan, folder: Path) -> None:
    folder.mkdir(parents=True)
    Ledger.create(folder / "hospital-1.sqlite", "hospital-1", unit="image").shut()
    with pytest.raises(LedgerError, match=r"counts for one image, and the plan's privacy.unit is patient"):
        run(plan, folder, "first")
    assert list(state(folder)) == ["hospital-1"]


def test_a_ledger_that_peers_remember_is_not_made_anew(plan: Plan, folder: Path) -> None:
    run(plan, folder, "first")
    (folder / "hospital-2.sqlite").unlink()
    with pytest.raises(LedgerError, match=r"hospital-2.sqlite: no such ledger, but hospital-1 saw it"):
        run(plan, folder, "second")
    assert not (folder / "hospital-2.sqlite").exists()


def test_a_run_that_a_backup_does_not_know_has_to_be_named(plan: Plan, folder: Path, tmp_path: Path) -> None:
    first = run(plan, folder, "first")
    backup = tmp_path / "backup.sqlite"
    shutil.copy(folder / "hospital-2.sqlite", backup)
    second = interrupted(plan, folder, "second")
    with Ledger.open(folder / "hospital-2.sqlite", read_only=True) as ledger:
        spent = ledger.spent(second.facts().run)
    shutil.copy(backup, folder / "hospital-2.sqlite")
    with pytest.raises(LedgerError, match="privfm budget recover RUN hospital-2"):
        run(plan, folder, "third")
    before = state(folder)
    with pytest.raises(InputError, match=f"{second.facts().run}.*--also"):
        recover_hospital(RunDirectory(first.out), "hospital-2")
    assert state(folder) == before
    done = recover_hospital(second, "hospital-2", also=[RunDirectory(first.out)])
    assert set(done.runs) == {second.facts().run}  # the first is over
    with Ledger.open(folder / "hospital-2.sqlite", read_only=True) as ledger:
        assert ledger.spent(second.facts().run) >= spent > 0
        assert ledger.counter == EPOCH
    result = train(second.plan, second.root, resume=True)
    assert verify_run(second)["hospital-2"] >= 1
    assert result.hospitals[1].steps >= 4


def test_every_run_that_may_have_gone_on_is_charged_for_what_was_lost(plan: Plan, folder: Path, tmp_path: Path) -> None:
    """The ledger cannot tell whose rounds they were: the other run has a round left too, and less noise."""
    louder = interrupted(
        plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"epsilon": 20.0})}), folder, "1"
    )
    quieter = interrupted(plan, folder, "2")
    backup = tmp_path / "backup.sqlite"
    shutil.copy(folder / "hospital-2.sqlite", backup)
    train(quieter.plan, quieter.root, resume=True)
    shutil.copy(backup, folder / "hospital-2.sqlite")
    done = recover_hospital(quieter, "hospital-2")
    assert done.runs == {louder.facts().run: 1, quieter.facts().run: 1}


def test_a_guarantee_for_readers_of_one_runs_sums_ends_with_the_next_run(
    tiny_plan: Callable[..., Plan], folder: Path
) -> None:
    plan = tiny_plan(
        federation={"rounds": 2, "local_steps": 1, "retry_rounds": 0},
        optimizer={"name": "sgd", "learning_rate": 0.05},
        evaluation={"probe": False},
    )
    first = RunDirectory(run(plan, folder, "first").out)
    assert state_run(first).final_model is not None
    second = RunDirectory(run(plan, folder, "second").out)
    assert state_run(first).final_model is state_run(second).final_model is None


def written_anew(path: Path, without: str) -> None:
    """A ledger whose chain holds again after a run was taken out of it, with as many counters as before."""
    chain, entries = ChainFile.open(path, read_only=True)
    chain.shut()
    path.unlink()
    ChainFile.create(path, entries[0].body)
    chain, numbers = ChainFile.open(path)[0], {0: 0}
    for entry in entries[1:]:
        if entry.body.get("run") != without and entry.body.get("charge", 0) in numbers:
            numbers[entry.sequence] = chain.length
            charge = {"charge": numbers[entry.body["charge"]]} if "charge" in entry.body else {}
            chain.append(entry.kind, entry.body | charge)
    chain.shut()


def test_a_run_that_was_taken_out_of_a_ledger_is_told(plan: Plan, folder: Path) -> None:
    """Its chain holds, and it says of the other run what it always did; but its peers saw another one."""
    first = RunDirectory.existing(run(plan, folder, "first").out).facts().run
    second = RunDirectory.existing(run(plan, folder, "second").out)
    written_anew(folder / "hospital-1.sqlite", without=first)
    with Ledger.open(folder / "hospital-1.sqlite", "hospital-1", read_only=True) as ledger:
        assert [record.declaration.run for record in ledger.runs()] == [second.facts().run]
    with pytest.raises(VerificationError, match=r"hospital-1\.sqlite: lacks an entry that hospital-\d saw"):
        verify_run(second, "hospital-1")
    with pytest.raises(LedgerError, match=r"hospital-1\.sqlite: lacks an entry that hospital-2 saw"):
        run(plan, folder, "third")
