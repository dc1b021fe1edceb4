"""The end of a run in a ledger: kept once, never changed, and the account as it stood then."""

from __future__ import annotations

from pathlib import Path

import pytest

from privfm.dp.chain import Entry
from privfm.dp.events import SampledGaussian
from privfm.dp.filter import RdpFilter
from privfm.dp.ledger import Ledger
from privfm.dp.spending import Spending
from privfm.errors import LedgerError

STEP = SampledGaussian(0.5, 2.0, 1)
LEFT = {"rounds.jsonl": b"\1" * 32, "roster.json": b"\2" * 32}


def play(ledger: Ledger, run: str) -> None:
    ledger.open_run(run, bytes(32), [STEP], rounds=1, retry_rounds=0)
    ledger.next_counter()
    ledger.close(ledger.charge(run, 1, 0, context=bytes(32)), "released", bytes(32))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.create(tmp_path / "north.sqlite", "north")
    play(ledger, "one")
    return ledger


def test_the_end_is_kept_over_opening_again(ledger: Ledger) -> None:
    assert ledger.outcome("one") == {}
    ledger.conclude("one", LEFT)
    path = ledger.path
    ledger.shut()
    with Ledger.open(path, read_only=True) as again:
        assert again.outcome("one") == LEFT


def test_saying_it_again_writes_nothing_and_something_else_is_refused(ledger: Ledger) -> None:
    ledger.conclude("one", LEFT)
    head = ledger.head()
    ledger.conclude("one", LEFT)
    with pytest.raises(LedgerError, match=r"ended with another roster\.json; restore what it left"):
        ledger.conclude("one", LEFT | {"roster.json": bytes(32)})
    with pytest.raises(LedgerError, match="not on record"):
        ledger.conclude("two", LEFT)
    with pytest.raises(ValueError, match="must be 32 bytes"):
        ledger.conclude("one", {"rounds.jsonl": b"short"})
    assert ledger.head() == head


def test_two_ends_of_one_run_are_no_ledger(ledger: Ledger) -> None:
    body = {"run": "one", "outcome": {"rounds.jsonl": "00" * 32}, "at": "now"}
    entries = [*ledger._chain.reload(), Entry(9, "concluded", body, bytes(32))]
    spending = Spending(entries)
    with pytest.raises(LedgerError, match="run 'one' is concluded twice"):
        spending.apply(entries[-1])


def test_the_account_is_shown_as_it_stood_since_the_end(ledger: Ledger) -> None:
    ledger.conclude("one", LEFT)
    ledger.set_cap(RdpFilter.for_cap(20.0, 1e-5))
    play(ledger, "two")
    states = [(len(account.events("two")), account.cap is not None, account.counter) for account in ledger.since("one")]
    assert states[0] == (0, False, 1)
    assert states[1] == (0, True, 1)
    assert states[-1] == (1, True, 2)
    assert states == sorted(states)
