"""`privfm roster`: a roster is made from what hospitals signed, and each hospital checks it for itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from privfm_cli.main import main

from privfm.secagg import Roster, check_successor

NAMES = ("north", "south", "west")
CARDS = [f"{name}.card.json" for name in NAMES]
FIRST, SECOND = "roster-1.json", "roster-2.json"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with three hospitals' keys and the roster of their federation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    for name in NAMES:
        _run("keys", "new", name, "--no-passphrase")
    _run("roster", "make", "--federation", "demo", *CARDS)
    capsys.readouterr()
    return tmp_path


def _run(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def _json(capsys: pytest.CaptureFixture[str], *arguments: str, exit_code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == exit_code
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def _refused(capsys: pytest.CaptureFixture[str], exit_code: int, *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == exit_code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("privfm: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def _roster(path: str = FIRST) -> Roster:
    return Roster.from_json(Path(path).read_bytes())


def _rotated(capsys: pytest.CaptureFixture[str], path: str = "north.pem") -> str:
    return str(_json(capsys, "keys", "rotate", path, "--no-passphrase")["card"])


def _stranger(name: str, out: str = "stranger.pem") -> str:
    """A card that somebody else made in a hospital's name."""
    _run("keys", "new", name, "--no-passphrase", "--out", out)
    return out.removesuffix(".pem") + ".card.json"


def test_the_first_version_holds_the_cards(capsys: pytest.CaptureFixture[str]) -> None:
    made = _json(capsys, "roster", "make", "--federation", "demo", *CARDS, "--out", "again.json")
    assert (made["federation"], made["version"], made["roster"]) == ("demo", 1, "again.json")
    assert [member["name"] for member in made["members"]] == list(NAMES)
    assert _roster() == _roster("again.json")
    assert made["fingerprint"] == _roster().fingerprint


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--federation or --previous"),
        (["--federation", "demo", "--previous", FIRST, *CARDS], "--federation or --previous"),
        (["--federation", "demo"], "at least one"),
        (["--federation", " demo", *CARDS], "printable"),
        (["--federation", "demo", *CARDS, "--remove", "north"], "--remove"),
        (["--federation", "demo", *CARDS, "north.card.json"], "two cards of 'north'"),
        (["--federation", "demo", "north.pem"], "north.pem: neither a card nor a revocation"),
        (["--federation", "demo", FIRST], f"{FIRST}: card is not sound"),
        (["--federation", "demo", *CARDS, "--out", FIRST], "is never overwritten"),
        (["--previous", FIRST], "nothing would change"),
        (["--previous", FIRST, "--remove", "east"], "no such member"),
        (["--previous", FIRST, "--replace", "north"], "its new card"),
        (["--previous", "north.card.json"], "roster file is not sound"),
    ],
)
def test_what_makes_no_roster(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in _refused(capsys, 2, "roster", "make", *arguments)
    assert not Path(SECOND).exists()


def test_two_members_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    _run("roster", "make", "--federation", "demo", *CARDS[:2], "--out", "two.json")
    assert "needs 3 hospitals" in capsys.readouterr().err


def test_the_next_version_rotates_joins_and_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    card, east = _rotated(capsys), _stranger("east")
    made = _json(capsys, "roster", "make", "--previous", FIRST, card, east, "--remove", "south")
    assert [member["name"] for member in made["members"]] == ["east", "north", "west"]
    assert len(made["revoked"]) == 2
    check_successor(_roster(), _roster(SECOND))


def test_a_strangers_card_needs_a_telephone_call(capsys: pytest.CaptureFixture[str]) -> None:
    card = _stranger("north")
    assert "--replace north" in _refused(capsys, 4, "roster", "make", "--previous", FIRST, card)
    _run("roster", "make", "--previous", FIRST, card, "--replace", "north")
    assert _roster(SECOND).key_of("north") != _roster().key_of("north")


def test_a_tampered_card_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("north.card.json")
    path.write_text(path.read_text().replace('"north"', '"nurth"'))
    said = _refused(capsys, 4, "roster", "make", "--federation", "demo", *CARDS, "--out", "x.json")
    assert said.startswith("privfm: error: north.card.json: the card signature of 'nurth' does not verify")


def test_a_revoked_key_leaves_and_never_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    _run("keys", "revoke", "north.pem")
    _run("roster", "make", "--previous", FIRST, "north.revocation.json")
    assert _roster(SECOND).names == ("south", "west")
    assert "was revoked" in _refused(capsys, 4, "roster", "make", "--previous", SECOND, "north.card.json")
    assert "revokes your key" in _refused(capsys, 4, "roster", "check", SECOND, "--key", "north.pem")


def test_a_revoked_key_vouches_for_no_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    card = _rotated(capsys)
    _run("keys", "revoke", "north.pem")
    make = ["roster", "make", "--previous", FIRST, card, "north.revocation.json"]
    assert "vouches for no card" in _refused(capsys, 4, *make)
    _run(*make, "--replace", "north")
    assert "north" in _roster(SECOND).names


def test_every_check_passes_on_the_right_roster(capsys: pytest.CaptureFixture[str]) -> None:
    _run("roster", "make", "--previous", FIRST, _rotated(capsys))
    read_aloud = _roster(SECOND).fingerprint
    for digits in (read_aloud, read_aloud.replace(" ", ""), read_aloud.replace(" ", " - ")):
        checks = ["--previous", FIRST, "--key", "south.card.json", "--fingerprint", digits]
        checked = _json(capsys, "roster", "check", SECOND, *checks)["checked"]
        assert checked == {"follows": True, "holds": "south", "fingerprint": True}
    assert _json(capsys, "roster", "check", SECOND, "--key", "south.pem")["checked"]["holds"] == "south"


@pytest.mark.parametrize(
    ("flags", "exit_code", "says"),
    [
        (["--previous", "other.json"], 4, "is of 'demo', not 'other'"),
        (["--previous", FIRST], 4, "it is no newer"),
        (["--key", "stranger.card.json"], 4, "holds another key for 'north'"),
        (["--key", "east.card.json"], 4, "has no member 'east'"),
        (["--key", "south.revocation.json"], 2, "is a revocation"),
        (["--fingerprint", "0" * 40], 4, "not the one read to you"),
        (["--fingerprint", "12345"], 2, "all 40 digits"),
        (["--fingerprint", "x" * 40], 2, "all 40 digits"),
        (["--key", "missing.pem"], 2, "missing.pem"),
    ],
)
def test_every_check_can_fail(flags: list[str], exit_code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    _run("roster", "make", "--federation", "other", *CARDS, "--out", "other.json")
    _stranger("north")
    _stranger("east", "east.pem")
    _run("keys", "revoke", "south.pem")
    assert says in _refused(capsys, exit_code, "roster", "check", FIRST, *flags)


def test_a_fork_of_the_roster_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    """Two second versions; the third of one shown to a hospital that holds the other."""
    _run("roster", "make", "--previous", FIRST, "--remove", "west", "--out", "a2.json")
    _run("roster", "make", "--previous", FIRST, _rotated(capsys), "--out", "b2.json")
    _run("roster", "make", "--previous", "b2.json", _stranger("east"), "--out", "b3.json")
    assert "made from another one" in _refused(capsys, 4, "roster", "check", "b3.json", "--previous", "a2.json")
    assert "ones between" in _refused(capsys, 4, "roster", "check", "b3.json", "--previous", FIRST)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-4],
        lambda text: text.replace('"version"', '"version": 1, "version"'),
        lambda text: text.replace('"demo"', "7"),
        lambda text: text + " " * 2**24,
    ],
)
def test_an_unsound_roster_is_named(damage: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.json").write_text(damage(Path(FIRST).read_text()))
    for command in (["check", "bad.json"], ["diff", FIRST, "bad.json"], ["make", "--previous", "bad.json"]):
        assert "bad.json: roster file is not sound" in _refused(capsys, 2, "roster", *command)


def test_a_diff_says_what_changed_and_whether_it_may(capsys: pytest.CaptureFixture[str]) -> None:
    _run("roster", "make", "--previous", FIRST, _rotated(capsys))
    forth = _json(capsys, "roster", "diff", FIRST, SECOND)
    assert (forth["same"], forth["follows"], forth["reason"]) == (False, True, None)
    assert [line.split(":")[0] for line in forth["changes"]] == ["version", "north", "revoked"]
    back = _json(capsys, "roster", "diff", SECOND, FIRST, exit_code=4)
    assert (back["same"], back["follows"]) == (False, False)
    assert back["reason"]
    same = _json(capsys, "roster", "diff", FIRST, FIRST)
    assert (same["same"], same["follows"], same["changes"]) == (True, False, [])


def test_what_a_person_reads(capsys: pytest.CaptureFixture[str]) -> None:
    _run("roster", "check", FIRST)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert all(member.fingerprint in printed.out for member in _roster().members)
    assert f"fingerprint of the roster: {_roster().fingerprint}" in printed.out
    assert "NOT that others hold the same one" in printed.out
    _run("roster", "check", FIRST, "--fingerprint", _roster().fingerprint)
    assert "it is the roster that was read to you" in capsys.readouterr().out
