"""Ledgers of several hospitals side by side: what cannot all be true is told, with the file."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from privfm.dp.events import SampledGaussian
from privfm.dp.ledger import Ledger
from privfm.dp.peers import check_peers
from privfm.errors import VerificationError

DECLARED: dict[str, Any] = {"plan_hash": bytes(32), "rounds": 2, "retry_rounds": 1, "private": True}


def make(folder: Path, name: str, noise: float = 2.0, transcript: bytes = bytes(32), **changes: Any) -> Ledger:
    """A ledger with one run and its first round released."""
    ledger = Ledger.create(folder / f"{name}.sqlite", name)
    ledger.open_run("run", per_round=[SampledGaussian(0.5, noise, 2)], **(DECLARED | changes))
    ledger.next_counter()
    ledger.close(ledger.charge("run", 1, 0, context=bytes(32)), "released", transcript)
    return ledger


def complaint(*ledgers: Ledger) -> str:
    with ExitStack() as stack, pytest.raises(VerificationError) as caught:
        check_peers([stack.enter_context(ledger) for ledger in ledgers])
    return str(caught.value)


def test_hospitals_with_their_own_noise_go_together(tmp_path: Path) -> None:
    with make(tmp_path, "north", noise=2.0) as north, make(tmp_path, "south", noise=3.0) as south:
        north.remember_peers({"south": (south.counter, south.head())})
        check_peers([north, south])
        north.conclude("run", {"rounds.jsonl": bytes(32)})  # the other one has not heard of the end yet
        check_peers([north, south])


@pytest.mark.parametrize("change", [{"plan_hash": b"\1" * 32}, {"rounds": 3}, {"retry_rounds": 0}, {"private": False}])
def test_a_run_that_is_declared_otherwise_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    said = complaint(make(tmp_path, "north"), make(tmp_path, "south", **change))
    assert "north.sqlite: declares run run otherwise than" in said
    assert said.endswith("south.sqlite does")


def test_another_transcript_is_told(tmp_path: Path) -> None:
    said = complaint(make(tmp_path, "north"), make(tmp_path, "south", transcript=b"\1" * 32))
    assert "north.sqlite: has another transcript of a round of run run than" in said


def test_another_end_is_told(tmp_path: Path) -> None:
    north, south = make(tmp_path, "north"), make(tmp_path, "south")
    north.conclude("run", {"rounds.jsonl": bytes(32)})
    south.conclude("run", {"rounds.jsonl": b"\1" * 32})
    assert "run run left something else by it" in complaint(north, south)


def test_a_ledger_that_is_older_than_a_peer_saw_it_is_told(tmp_path: Path) -> None:
    north, south = make(tmp_path, "north"), make(tmp_path, "south")
    south.remember_peers({"north": (7, bytes(32))})
    assert "north.sqlite: stands at counter 1, and south saw 7; it came from a backup" in complaint(north, south)


def test_a_ledger_that_was_written_anew_is_told(tmp_path: Path) -> None:
    """A chain holds again once all of it is written anew, with as many counters and without what it had charged."""
    north, south = make(tmp_path, "north"), make(tmp_path, "south")
    south.remember_peers({"north": (north.counter, north.head())})
    check_peers([north, south])
    north.shut()
    north.path.unlink()
    anew = Ledger.create(tmp_path / "north.sqlite", "north")
    anew.next_counter()
    assert "north.sqlite: lacks an entry that south saw at counter 1; it was written anew" in complaint(anew, south)


def test_a_ledger_that_lost_what_a_peer_saw_and_recovered_goes_with_it(tmp_path: Path) -> None:
    with make(tmp_path, "north") as north, make(tmp_path, "south") as south:
        south.remember_peers({"north": (7, bytes(32))})
        north.recover("run", 7)
        check_peers([north, south])


def test_a_run_that_goes_on_meanwhile_is_no_mismatch(tmp_path: Path) -> None:
    with (
        make(tmp_path, "north") as north,
        make(tmp_path, "south") as south,
        Ledger.open(north.path, read_only=True) as read_before,
    ):
        north.next_counter()
        south.remember_peers({"north": (north.counter, north.head())})
        check_peers([read_before, south])


def test_a_ledger_under_another_hospitals_name_is_told(tmp_path: Path) -> None:
    make(tmp_path, "north").shut()
    (tmp_path / "north.sqlite").rename(tmp_path / "south.sqlite")
    said = complaint(Ledger.open(tmp_path / "south.sqlite", read_only=True))
    assert said == f"{tmp_path / 'south.sqlite'}: is the ledger of north; give it back its name, north.sqlite"
