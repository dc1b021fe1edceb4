"""The ledger: charged before computing, never less than was released, never reset, whoever pulls the plug."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from privfm.dp.account import EPOCH
from privfm.dp.calibration import calibrate_noise_under
from privfm.dp.chain import entry_hash
from privfm.dp.events import SampledGaussian
from privfm.dp.filter import RdpFilter
from privfm.dp.ledger import Charge, Ledger
from privfm.errors import BudgetExceeded, LedgerError, LedgerUnavailable

STEP = SampledGaussian(0.1, 2.0, 5)
PLAN = b"p" * 32
CONTEXT = b"c" * 32
TRANSCRIPT = b"t" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "north.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.create(path, "north") as made:
        made.open_run("run", PLAN, [STEP], rounds=3, retry_rounds=1)
        yield made


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# A round


def test_a_round_leaves_charge_vector_hash_and_end(ledger: Ledger, path: Path) -> None:
    charge = ledger.charge("run", 0, 0, CONTEXT)
    assert (charge.events, charge.context) == ((STEP,), CONTEXT)
    assert ledger.load_update("run", 0) is None
    ledger.store_update(charge, b"noised vector")
    assert ledger.pending("run", 0) == charge
    assert ledger.load_update("run", 0) == b"noised vector"
    ledger.close(charge, "released", TRANSCRIPT)
    assert ledger.pending("run", 0) is None
    assert ledger.load_update("run", 0) is None
    assert ledger.events() == (STEP,)
    assert ledger.transcripts("run") == {0: TRANSCRIPT}
    (record,) = ledger.runs()
    assert (record.released, record.aborted, record.unknown) == (1, 0, 0)


def test_the_charge_is_on_disk_when_charge_returns(ledger: Ledger, path: Path) -> None:
    ledger.charge("run", 0, 0, CONTEXT)
    with Ledger.open(path, read_only=True) as reader:
        assert reader.spent("run") == STEP.steps


def test_everything_that_one_round_releases_is_charged(path: Path) -> None:
    metric = SampledGaussian(1.0, 50.0, 1)
    with Ledger.create(path, "north") as ledger:
        ledger.open_run("run", PLAN, [STEP, metric], rounds=2, retry_rounds=0)
        ledger.charge("run", 0, 0, CONTEXT)
        ledger.charge("run", 1, 0, CONTEXT)
        assert set(ledger.events("run")) == {STEP.repeated(2), metric.repeated(2)}
        assert ledger.spent("run") == 12


def test_a_retry_sends_the_stored_vector_and_costs_nothing(ledger: Ledger, path: Path) -> None:
    ledger.store_update(ledger.charge("run", 0, 0, CONTEXT), b"v")
    ledger.shut()
    with Ledger.open(path, "north") as again:
        assert again.load_update("run", 0) == b"v"
        with pytest.raises(LedgerError, match="has a stored vector; send that again"):
            again.charge("run", 0, 1, CONTEXT)
        assert again.spent("run") == STEP.steps
        pending = again.pending("run", 0)
        assert pending is not None
        again.close(pending, "released", TRANSCRIPT)


def test_a_vector_that_was_lost_is_charged_again(ledger: Ledger) -> None:
    ledger.charge("run", 0, 0, CONTEXT)
    assert ledger.next_attempt("run", 0) == 1
    ledger.charge("run", 0, 1, CONTEXT)
    assert ledger.spent("run") == 2 * STEP.steps


@pytest.mark.parametrize("outcome", ["released", "aborted"])
def test_no_outcome_refunds(ledger: Ledger, outcome: str) -> None:
    ledger.close(ledger.charge("run", 0, 0, CONTEXT), outcome)  # type: ignore[arg-type]
    assert ledger.spent("run") == STEP.steps


def test_what_makes_no_sense_is_refused(ledger: Ledger) -> None:
    charge = ledger.charge("run", 0, 0, CONTEXT)
    with pytest.raises(LedgerError, match=r"attempt 0 was charged already; use 1"):
        ledger.charge("run", 0, 0, CONTEXT)
    with pytest.raises(LedgerError, match="not on record"):
        ledger.charge("other", 0, 0, CONTEXT)
    with pytest.raises(ValueError, match="context=bytes of 3"):
        ledger.charge("run", 1, 0, b"abc")
    with pytest.raises(ValueError, match="round=-1"):
        ledger.charge("run", -1, 0, CONTEXT)
    ledger.store_update(charge, b"v")
    with pytest.raises(LedgerError, match="has its vector"):
        ledger.store_update(charge, b"w")
    ledger.close(charge, "released")
    with pytest.raises(LedgerError, match="ended already"):
        ledger.close(charge, "released")
    with pytest.raises(LedgerError, match="has ended"):
        ledger.store_update(charge, b"w")
    with pytest.raises(LedgerError, match="was released already"):
        ledger.charge("run", 0, 1, CONTEXT)
    with pytest.raises(LedgerError, match="no such charge"):
        ledger.close(Charge("run", 7, 0, CONTEXT, (STEP,), 999), "aborted")
    assert ledger.spent("run") == STEP.steps


# Limits


def test_beyond_rounds_and_reserve_nothing_is_written(ledger: Ledger) -> None:
    for round_number in range(4):
        ledger.close(ledger.charge("run", round_number, 0, CONTEXT), "released")
    head = ledger.head()
    assert ledger.remaining("run") == 0
    with pytest.raises(BudgetExceeded, match="used its 3 rounds and 1 retries") as error:
        ledger.charge("run", 4, 0, CONTEXT)
    one_line(error)
    assert ledger.head() == head


def test_a_planned_run_is_never_refused_and_one_step_more_always_is(tmp_path: Path) -> None:
    cap = RdpFilter.for_cap(8.0, 1e-5)
    noise = calibrate_noise_under(cap, sample_rate=0.1, steps=30 * 7)
    planned, one_more = SampledGaussian(0.1, noise, 7), SampledGaussian(0.1, noise, 1)
    with Ledger.create(tmp_path / "exact.sqlite", "north", cap=cap) as ledger:
        ledger.open_run("run", PLAN, [planned], rounds=28, retry_rounds=2)
        for round_number in range(30):
            ledger.charge("run", round_number, 0, CONTEXT)
        head = ledger.head()
        with pytest.raises(BudgetExceeded, match=r"room for 0 more rounds of this kind, not 1") as error:
            ledger.open_run("one more", PLAN, [one_more], rounds=1, retry_rounds=0)
        one_line(error)
        assert ledger.head() == head
    with (
        Ledger.create(tmp_path / "more.sqlite", "north", cap=cap) as ledger,
        pytest.raises(BudgetExceeded, match="room for 30 more rounds of this kind, not 31"),
    ):
        ledger.open_run("run", PLAN, [planned], rounds=29, retry_rounds=2)


def test_the_cap_counts_all_runs_and_refuses_before_the_step(path: Path) -> None:
    cap = RdpFilter.for_cap(1.0, 1e-5)
    half = cap.rounds_that_fit([STEP]) // 2 + 1
    with Ledger.create(path, "north", cap=cap) as ledger:
        for run in ("first", "second"):  # each fits on its own, both together do not
            ledger.open_run(run, PLAN, [STEP], rounds=half, retry_rounds=0)
        for round_number in range(half):
            ledger.charge("first", round_number, 0, CONTEXT)
        left = cap.rounds_that_fit([STEP], spent=ledger.events())
        for round_number in range(left):
            ledger.charge("second", round_number, 0, CONTEXT)
        with pytest.raises(BudgetExceeded, match="lifetime cap"):
            ledger.charge("second", left, 0, CONTEXT)
        assert cap.admits(ledger.events())
        assert not cap.admits([*ledger.events(), STEP])


def test_caps_can_only_be_tightened(path: Path) -> None:
    with Ledger.create(path, "north") as ledger:
        first = RdpFilter.for_cap(8.0, 1e-5)
        ledger.set_cap(first)
        ledger.set_cap(RdpFilter(4.0, 1e-5, first.order))
        with pytest.raises(ValueError, match="only be lowered"):
            ledger.set_cap(first)
        with pytest.raises(ValueError, match="keeps its order and delta"):
            ledger.set_cap(RdpFilter(4.0, 1e-5, first.order + 1.0))
        with pytest.raises(ValueError, match="keeps its order and delta"):
            ledger.set_cap(RdpFilter(4.0, 1e-4, first.order))
    with Ledger.open(path) as ledger:
        assert ledger.cap == RdpFilter(4.0, 1e-5, first.order)


def test_injected_coins_are_on_record_for_ever(path: Path) -> None:
    with Ledger.create(path, "north") as ledger:
        ledger.open_run("test", PLAN, [STEP], rounds=1, retry_rounds=0, private=False)
        before = ledger.private
        ledger.charge("test", 0, 0, CONTEXT)
        assert (before, ledger.private) == (True, False)
    with (
        Ledger.create(path.with_name("capped.sqlite"), "north", cap=RdpFilter.for_cap(8.0, 1e-5)) as ledger,
        pytest.raises(BudgetExceeded, match="injected coins"),
    ):
        ledger.open_run("test", PLAN, [STEP], rounds=1, retry_rounds=0, private=False)


def test_a_cap_that_is_set_after_a_run_that_was_not_private_admits_nothing(path: Path) -> None:
    with Ledger.create(path, "north") as ledger:
        ledger.open_run("test", PLAN, [STEP], rounds=1, retry_rounds=0, private=False)
        ledger.charge("test", 0, 0, CONTEXT)
        ledger.open_run("before", PLAN, [STEP], rounds=1, retry_rounds=0)
        ledger.set_cap(RdpFilter.for_cap(8.0, 1e-5))
        with pytest.raises(BudgetExceeded, match="nothing fits under a lifetime cap after a run without noise"):
            ledger.open_run("after", PLAN, [STEP], rounds=1, retry_rounds=0)
        with pytest.raises(BudgetExceeded, match="nothing fits"):
            ledger.charge("before", 0, 0, CONTEXT)


def test_opening_a_run_again_changes_nothing_unless_the_plan_changed(ledger: Ledger) -> None:
    head = ledger.head()
    ledger.open_run("run", PLAN, [STEP], rounds=3, retry_rounds=1)
    assert ledger.head() == head
    for plan, step, rounds, private in [
        (b"q" * 32, STEP, 3, True),
        (PLAN, SampledGaussian(0.1, 2.1, 5), 3, True),
        (PLAN, STEP, 4, True),
        (PLAN, STEP, 3, False),
    ]:
        with pytest.raises(LedgerError, match="on record with another plan"):
            ledger.open_run("run", plan, [step], rounds=rounds, retry_rounds=1, private=private)


@pytest.mark.parametrize(("rounds", "retries", "steps"), [(0, 0, 1), (1, -1, 1), (1, 0, 0)])
def test_a_run_that_cannot_be_is_refused(ledger: Ledger, rounds: int, retries: int, steps: int) -> None:
    with pytest.raises(ValueError, match=f"rounds={rounds}, retry_rounds={retries}"):
        ledger.open_run("other", PLAN, [SampledGaussian(0.1, 2.0, steps)], rounds=rounds, retry_rounds=retries)


# The file


def test_a_new_ledger_never_replaces_an_old_one(ledger: Ledger, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="exists already") as error:
        Ledger.create(path, "north")
    one_line(error)
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*.new"))


def test_a_missing_ledger_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no such ledger; restore it") as error:
        Ledger.open(tmp_path / "north.sqlite")
    one_line(error)
    assert not list(tmp_path.iterdir())


def test_another_hospitals_ledger_is_refused(ledger: Ledger, path: Path) -> None:
    ledger.shut()
    with pytest.raises(LedgerError, match="belongs to 'north', not to 'south'"):
        Ledger.open(path, "south")


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + b"\0" * 200])
def test_a_file_that_is_no_ledger_is_refused_in_one_line(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"north\.sqlite") as error:
        Ledger.open(path)
    one_line(error)
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE entries (sequence, kind, body, hash)")
    other.close()
    with pytest.raises(LedgerError, match="not a privfm ledger"):
        Ledger.open(path)


def test_only_the_owner_can_read_it(ledger: Ledger, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_secret_in_its_name(ledger: Ledger) -> None:
    ledger.store_update(ledger.charge("run", 0, 0, CONTEXT), b"noised vector")
    assert repr(ledger).startswith("Ledger(path=")
    assert "noised" not in repr(ledger)


# Tampering


def tamper(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for trigger in ("entries_keep", "entries_stay", "vectors_keep"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = replace(body, '\"attempt\":0', '\"attempt\":9') WHERE kind = 'charge'",
        "UPDATE entries SET kind = 'counter' WHERE kind = 'charge'",
        "UPDATE entries SET hash = zeroblob(32) WHERE sequence = 3",
        "DELETE FROM entries WHERE sequence = 2",
        "DELETE FROM entries WHERE sequence = 0",
        "UPDATE entries SET sequence = 99 WHERE sequence = 3",
        "UPDATE entries SET sequence = -sequence",
        "INSERT INTO entries SELECT sequence + 50, kind, body, hash FROM entries WHERE kind = 'charge'",
    ],
)
def test_a_changed_entry_breaks_the_chain(ledger: Ledger, path: Path, statement: str) -> None:
    ledger.charge("run", 0, 0, CONTEXT)
    ledger.next_counter()
    ledger.shut()
    tamper(path, statement)
    with pytest.raises(LedgerError, match=r"breaks the chain|not understood|no first entry") as error:
        Ledger.open(path)
    one_line(error)


def test_an_entry_with_a_hash_of_its_own_breaks_the_next_link(ledger: Ledger, path: Path) -> None:
    ledger.charge("run", 0, 0, CONTEXT)
    ledger.next_counter()
    entries = ledger._chain.reload()
    ledger.shut()
    body = json.dumps(entries[2].body | {"attempt": 9}, sort_keys=True, separators=(",", ":"))
    forged = entry_hash(2, entries[1].hash, "charge", body)
    tamper(path, f"UPDATE entries SET body = '{body}', hash = x'{forged.hex()}' WHERE sequence = 2")  # noqa: S608
    with pytest.raises(LedgerError, match="entry 3 breaks the chain"):
        Ledger.open(path)


def test_the_file_itself_refuses_changes(ledger: Ledger, path: Path) -> None:
    ledger.store_update(ledger.charge("run", 0, 0, CONTEXT), b"v")
    ledger.shut()
    connection = sqlite3.connect(path)
    for statement in (
        "UPDATE entries SET body = ''",
        "DELETE FROM entries",
        "UPDATE vectors SET vector = x'00'",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_a_vector_that_changed_on_disk_is_not_sent(ledger: Ledger, path: Path) -> None:
    ledger.store_update(ledger.charge("run", 0, 0, CONTEXT), b"noised vector")
    ledger.shut()
    tamper(path, "UPDATE vectors SET vector = CAST('another vector' AS BLOB)")
    with Ledger.open(path) as again:
        with pytest.raises(LedgerError, match="stored vector of round 0 is damaged"):
            again.load_update("run", 0)
        with pytest.raises(LedgerError, match="stored vector of round 0 is damaged"):
            again.verify()
        pending = again.pending("run", 0)
        assert pending is not None
        again.close(pending, "aborted")
        again.charge("run", 0, 1, CONTEXT)
        assert again.spent("run") == 2 * STEP.steps


def test_a_chain_whose_meaning_is_wrong_is_refused(ledger: Ledger, path: Path) -> None:
    """Right hashes, wrong story: written by somebody who knows the format."""
    stories: list[tuple[str, dict[str, object]]] = [
        ("charge", {"run": "unknown", "round": 0, "attempt": 0, "context": "00"}),
        ("charge", {"run": "run", "round": 0}),
        ("recovered", {"run": "run", "rounds": -5, "counter": 9}),
        ("recovered", {"run": "run", "rounds": 0, "counter": 9}),
        ("counter", {"counter": 0}),
        ("closed", {"charge": 1, "outcome": "released", "transcript": None}),
        ("genesis", {"hospital": "north"}),
        ("refund", {}),
    ]
    ledger.shut()
    for kind, body in stories:
        forged = path.with_name("forged.sqlite")
        shutil.copy(path, forged)
        with Ledger.open(forged) as writer:
            writer._chain.append(kind, body)
        with pytest.raises(LedgerError, match="ledger entry 2"):
            Ledger.open(forged)
        forged.unlink()


def test_verify_reads_the_disk_again(ledger: Ledger, path: Path) -> None:
    ledger.store_update(ledger.charge("run", 0, 0, CONTEXT), b"v")
    ledger.verify()
    ledger.charge("run", 1, 0, CONTEXT)
    ledger.verify()
    assert ledger.spent("run") == 2 * STEP.steps


# Damage


def account_or_error(path: Path) -> int | LedgerError:
    try:
        with Ledger.open(path) as ledger:
            return ledger.spent("run")
    except LedgerError as error:
        return error


def test_flipped_bytes_never_make_a_smaller_account(ledger: Ledger, path: Path) -> None:
    for round_number in range(4):
        ledger.charge("run", round_number, 0, CONTEXT)
    ledger.shut()
    whole, random = path.read_bytes(), Random(7)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        opened = account_or_error(path)
        assert opened == 4 * STEP.steps or (isinstance(opened, LedgerError) and "\n" not in str(opened))


def test_a_torn_write_is_rolled_back_or_refused(ledger: Ledger, path: Path) -> None:
    for round_number in range(4):
        ledger.charge("run", round_number, 0, CONTEXT)
    ledger.shut()
    whole = path.read_bytes()
    for length in range(0, len(whole), 512):
        path.write_bytes(whole[:length])
        opened = account_or_error(path)
        assert isinstance(opened, LedgerError) or (opened == 4 * STEP.steps and not whole[length:].strip(b"\0"))


def test_a_full_disk_charges_nothing_and_says_so(ledger: Ledger) -> None:
    charge = ledger.charge("run", 0, 0, CONTEXT)
    (pages,) = ledger._chain._connection.execute("PRAGMA page_count").fetchone()
    ledger._chain._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    head = ledger.head()
    with pytest.raises(LedgerError, match="free some space") as error:
        ledger.store_update(charge, bytes(100_000))
    one_line(error)
    assert ledger.head() == head
    ledger.verify()
    with pytest.raises(LedgerError, match="free some space"):
        ledger.remember_peers({"peer" * 5000: (1, b"h" * 32)})
    ledger._chain._connection.execute("PRAGMA max_page_count = 100000")
    ledger.store_update(charge, bytes(100_000))
    ledger.verify()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="could not be created") as error:
        Ledger.create(tmp_path / "missing" / "north.sqlite", "north")
    one_line(error)


# Clocks


def test_a_clock_that_jumps_changes_nothing_but_what_people_read(tmp_path: Path) -> None:
    jumps = iter([datetime(2031, 1, 1, tzinfo=UTC) + timedelta(days=days) for days in (0, 900, -4000, 3, -9, 0)])
    with Ledger.create(tmp_path / "jumpy.sqlite", "north", clock=lambda: next(jumps)) as ledger:
        ledger.open_run("run", PLAN, [STEP], rounds=3, retry_rounds=0)
        charge = ledger.charge("run", 0, 0, CONTEXT)
        ledger.store_update(charge, b"v")
        ledger.close(charge, "released")
        assert ledger.next_counter() == 1
        ledger.verify()
        assert ledger.spent("run") == STEP.steps


# Several processes


def test_a_second_writer_is_refused_and_a_reader_is_not(ledger: Ledger, path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from privfm.dp.ledger import Ledger\n"
        "from privfm.errors import LedgerError\n"
        f"path = Path({str(path)!r})\n"
        "with Ledger.open(path, read_only=True) as reader: print(reader.spent('run'))\n"
        "try:\n    Ledger.open(path)\n"
        "except LedgerError as error: print(error)\n"
        "try:\n    Ledger.open(path, read_only=True).next_counter()\n"
        "except LedgerError as error: print(error)\n"
    )
    ledger.charge("run", 0, 0, CONTEXT)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    spent, writer, reader = done.stdout.splitlines()
    assert spent == str(STEP.steps)
    assert "in use by another process" in writer
    assert "for reading only" in reader
    ledger.charge("run", 1, 0, CONTEXT)


def test_a_second_writer_in_the_same_process_is_refused_too(ledger: Ledger, path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="in use by another process"):
        Ledger.open(path)
    ledger.shut()
    with Ledger.open(path) as again:
        assert again.next_counter() == 1


# Copies, backups and peers


def test_counters_never_repeat(ledger: Ledger, path: Path) -> None:
    given = [ledger.next_counter() for _ in range(3)]
    ledger.shut()
    with Ledger.open(path) as again:
        assert [*given, again.next_counter()] == [1, 2, 3, 4]
        assert again.counter == 4


def test_peers_catch_a_ledger_that_went_back(ledger: Ledger) -> None:
    ledger.remember_peers({"south": (5, b"a" * 32), "west": (2, b"b" * 32)})
    ledger.remember_peers({"south": (5, b"a" * 32)})
    assert ledger.peers_seen() == {"south": (5, b"a" * 32), "west": (2, b"b" * 32)}
    with pytest.raises(LedgerError, match="south: its ledger went back to counter 4 after 5"):
        ledger.remember_peers({"west": (3, b"b" * 32), "south": (4, b"c" * 32)})
    with pytest.raises(LedgerError, match="south"):  # one counter, two heads: two copies of one ledger are alive
        ledger.remember_peers({"south": (5, b"c" * 32)})
    assert ledger.peers_seen()["west"] == (2, b"b" * 32)
    ledger.remember_peers({"north-east": (0, b"d" * 32)})  # a peer may begin anywhere


def release(ledger: Ledger, round_number: int) -> int:
    """Play a round; the highest counter that peers saw."""
    ledger.next_counter()
    counter = ledger.next_counter()
    ledger.close(ledger.charge("run", round_number, 0, CONTEXT), "released")
    return counter


@pytest.mark.parametrize("begun", [False, True], ids=["between rounds", "within a round"])
def test_a_restored_backup_charges_what_was_lost(ledger: Ledger, path: Path, tmp_path: Path, begun: bool) -> None:
    backup = tmp_path / "backup.sqlite"
    release(ledger, 0)
    if begun:
        ledger.next_counter()
    ledger.shut()
    shutil.copy(path, backup)
    with Ledger.open(path) as forward:
        if begun:
            forward.next_counter()
            forward.close(forward.charge("run", 1, 0, CONTEXT), "released")
        else:
            release(forward, 1)
        seen_by_peers = release(forward, 2)
        released = forward.spent("run")
    shutil.copy(backup, path)
    with Ledger.open(path) as restored:
        assert restored.spent("run") == released - 2 * STEP.steps
        assert restored.recover("run", seen_by_peers) == {"run": 2}
        assert restored.spent("run") == released
        assert restored.recover("run", seen_by_peers) == {}
        assert restored.next_counter() == EPOCH + 1
        assert restored.runs()[0].recovered == 2


def test_a_recovery_is_written_even_beyond_every_limit(path: Path) -> None:
    with Ledger.create(path, "north", cap=RdpFilter.for_cap(1.0, 1e-5)) as ledger:
        ledger.open_run("run", PLAN, [SampledGaussian(0.1, 5.0, 1)], rounds=100, retry_rounds=0)
        ledger.charge("run", 0, 0, CONTEXT)
        assert ledger.recover("run", 10**6) == {"run": 100}  # all the run could ever charge
        assert ledger.spent("run") == 101
        assert ledger.remaining("run") == 0
        with pytest.raises(ValueError, match="at most 2"):
            ledger.recover("run", 2**63 + 1)
        with pytest.raises(BudgetExceeded):
            ledger.charge("run", 1, 0, CONTEXT)


def test_a_recovery_charges_every_run_that_may_have_gone_on(path: Path) -> None:
    other, over = SampledGaussian(0.3, 1.0, 7), SampledGaussian(0.4, 1.5, 3)
    with Ledger.create(path, "north") as ledger:
        ledger.open_run("over", PLAN, [over], rounds=1, retry_rounds=5)
        ledger.close(ledger.charge("over", 1, 0, CONTEXT), "released")
        ledger.open_run("short", PLAN, [other], rounds=1, retry_rounds=1)
        ledger.open_run("run", PLAN, [STEP], rounds=10, retry_rounds=0)
        assert ledger.recover("run", 6) == {"short": 2, "run": 3}  # the short one cannot have lost more
    with Ledger.open(path, read_only=True) as again:
        assert again.events("short") == (other.repeated(2),)
        assert again.events("run") == (STEP.repeated(3),)
        assert again.events("over") == (over,)
        assert again.counter == EPOCH


def test_a_lost_run_is_put_back_whatever_the_cap_says(path: Path) -> None:
    with Ledger.create(path, "north", cap=RdpFilter.for_cap(1.0, 1e-5)) as ledger:
        with pytest.raises(BudgetExceeded):
            ledger.open_run("run", PLAN, [STEP.repeated(1000)], rounds=100, retry_rounds=0)
        ledger.open_run("run", PLAN, [STEP.repeated(1000)], rounds=100, retry_rounds=0, lost=True)
        with pytest.raises(BudgetExceeded):
            ledger.charge("run", 1, 0, CONTEXT)
        assert ledger.recover("run", 2) == {"run": 1}


# Any order of operations


class AnyOrder(RuleBasedStateMachine):
    """A hospital that charges, computes, sends, crashes and reopens in any order, beside a plain list of releases."""

    @initialize(retries=st.integers(0, 3))
    def start(self, retries: int) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "north.sqlite"
        self.most = 4 + retries
        self.ledger = Ledger.create(self.path, "north")
        self.ledger.open_run("run", PLAN, [STEP], rounds=4, retry_rounds=retries)
        self.charges = 0
        self.released: dict[int, bytes] = {}
        self.open: dict[int, Charge] = {}
        self.counter = 0

    @rule(round_number=st.integers(0, 4))
    def charge(self, round_number: int) -> None:
        attempt = self.ledger.next_attempt("run", round_number)
        try:
            self.open[round_number] = self.ledger.charge("run", round_number, attempt, CONTEXT)
        except BudgetExceeded:
            assert self.charges == self.most
        except LedgerError:
            stored = self.ledger.pending("run", round_number) is not None
            assert stored or round_number in self.released
        else:
            self.charges += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data(), vector=st.binary(max_size=20))
    def store(self, data: st.DataObject, vector: bytes) -> None:
        round_number = data.draw(st.sampled_from(sorted(self.open)))
        if self.ledger.pending("run", round_number) is None:
            self.ledger.store_update(self.open[round_number], vector)
            assert self.ledger.load_update("run", round_number) == vector

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outcome=st.sampled_from(["released", "aborted"]))
    def close(self, data: st.DataObject, outcome: str) -> None:
        round_number = data.draw(st.sampled_from(sorted(self.open)))
        vector = self.ledger.load_update("run", round_number)
        if outcome == "released" and vector is not None:
            self.released[round_number] = vector
        elif outcome == "released":
            return
        self.ledger.close(self.open.pop(round_number), outcome, TRANSCRIPT)  # type: ignore[arg-type]

    @rule()
    def count(self) -> None:
        self.counter += 1
        assert self.ledger.next_counter() == self.counter

    @rule()
    def crash(self) -> None:
        head, events = self.ledger.head(), self.ledger.events()
        self.ledger.shut()
        self.ledger = Ledger.open(self.path, "north")
        assert (self.ledger.head(), self.ledger.events()) == (head, events)
        self.open = {r: c for r in self.open if (c := self.ledger.pending("run", r)) is not None}

    @invariant()
    def charged_is_never_less_than_released(self) -> None:
        if not hasattr(self, "ledger"):
            return
        (record,) = self.ledger.runs()
        assert record.charged == self.charges >= len(self.released)
        assert self.ledger.spent("run") == self.charges * STEP.steps
        assert record.released == len(self.released)
        assert self.ledger.remaining("run") == self.most - self.charges

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.verify()
            self.ledger.shut()
            self.folder.cleanup()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)


# The plug


WORKER = """
import os, sys
from pathlib import Path
from privfm.dp.events import SampledGaussian
from privfm.dp.ledger import Ledger
from privfm.errors import BudgetExceeded

path, sent = Path(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
print("ready", flush=True)
with Ledger.open(path, "north") as ledger:
    for number in range(10**9):
        released = {f for f in ledger.transcripts("run")}
        if number in released:
            continue
        charge = ledger.pending("run", number)
        if charge is None:
            charge = ledger.charge("run", number, ledger.next_attempt("run", number), b"c" * 32)
            ledger.store_update(charge, number.to_bytes(8, "big") + os.urandom(56))
        vector = ledger.load_update("run", number)
        ledger.next_counter()
        os.write(sent, vector)          # the release: after this instant it is out
        ledger.close(charge, "released", b"t" * 32)
"""


def run_until_killed(path: Path, sent: Path, seconds: float, *, releases_first: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(path), str(sent)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 60.0
    while releases_first and not releases(sent) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def releases(sent: Path) -> list[bytes]:
    content = sent.read_bytes() if sent.exists() else b""
    return [content[i : i + 64] for i in range(0, len(content), 64)]


def survive(tmp_path: Path, kills: int, random: Random) -> None:
    path, sent = tmp_path / "north.sqlite", tmp_path / "sent"
    with Ledger.create(path, "north") as ledger:
        ledger.open_run("run", PLAN, [STEP], rounds=10**6, retry_rounds=kills)
    for killed in range(1, kills + 1):
        run_until_killed(path, sent, random.uniform(0.0, 0.06), releases_first=killed == 1)
        with Ledger.open(path, "north") as ledger:
            ledger.verify()
            (record,) = ledger.runs()
            distinct = set(releases(sent))
            assert record.charged >= len(distinct)  # a vector that was sent twice is one release
            rounds = {vector[:8] for vector in distinct}
            assert len(rounds) == len(distinct)  # no round was ever released with two different vectors
            assert record.charged - len(rounds) <= killed  # each kill costs one round of the reserve at most
            assert ledger.counter >= len(distinct)
    assert releases(sent)


def test_ten_kills(tmp_path: Path) -> None:
    survive(tmp_path, kills=10, random=Random(1))


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path) -> None:
    survive(tmp_path, kills=200, random=Random(2))
