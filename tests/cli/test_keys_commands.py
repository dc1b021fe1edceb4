"""`privfm keys`: private files stay private and are never lost; everything public is checked."""

from __future__ import annotations

import getpass
import json
import os
import pty
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from privfm_cli.main import main

from privfm.secagg import Identity, fingerprint
from privfm.secagg.cards import Card, Revocation

WORDS = "correct horse battery"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with nobody at the terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    return tmp_path


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def _refused(capsys: pytest.CaptureFixture[str], exit_code: int, *arguments: str) -> str:
    """The one line that a command ends in."""
    capsys.readouterr()
    assert main(list(arguments)) == exit_code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("privfm: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def _files() -> set[str]:
    return {path.name for path in Path().iterdir()}


def _new(name: str = "north") -> None:
    assert main(["keys", "new", name, "--no-passphrase"]) == 0


def _passphrase(text: str = WORDS, name: str = "words") -> str:
    Path(name).write_text(text)
    Path(name).chmod(0o600)
    return name


def _typing(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Somebody at a terminal; the questions come back."""
    asked: list[str] = []
    waiting = iter(answers)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(getpass, "getpass", lambda question: (asked.append(question), next(waiting))[1])
    return asked


def test_a_new_key_is_a_private_file_and_a_public_card(capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)
    try:
        made = _json(capsys, "keys", "new", "north", "--no-passphrase")
    finally:
        os.umask(before)
    identity = Identity.from_pem(Path("north.pem").read_bytes(), None)
    card = Card.from_json(Path("north.card.json").read_bytes())
    assert (identity.name, identity.public) == (card.name, card.key) == ("north", bytes.fromhex(made["key"]))
    assert made["fingerprint"] == fingerprint(card.key)
    assert (made["identity"], made["card"], made["sealed"]) == ("north.pem", "north.card.json", False)
    assert Path("north.pem").stat().st_mode & 0o777 == 0o600
    assert _files() == {"north.pem", "north.card.json"}


def test_keys_differ_and_the_private_half_is_never_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[bytes] = []
    real = os.urandom
    monkeypatch.setattr(os, "urandom", lambda count: drawn.append(real(count)) or drawn[-1])
    for name in ("north", "south"):
        _new(name)
    for command in (["show", "north.pem"], ["rotate", "north.pem", "--no-passphrase"], ["revoke", "north.pem"]):
        assert main(["keys", *command]) == 0
    printed = "".join(capsys.readouterr())
    secrets = [each for each in drawn if len(each) == 32]
    assert len(set(secrets)) == 3
    assert not any(secret.hex() in printed or repr(secret) in printed for secret in secrets)
    public = [path.read_text() for path in Path().glob("*.json")]
    assert not any(secret.hex() in text for secret in secrets for text in public)


def test_a_passphrase_file_seals_and_opens(capsys: pytest.CaptureFixture[str]) -> None:
    words = _passphrase(WORDS + "\r\n")
    made = _json(capsys, "keys", "new", "north", "--passphrase-file", words)
    assert made["sealed"]
    assert Identity.from_pem(Path("north.pem").read_bytes(), WORDS.encode()).name == "north"
    shown = _json(capsys, "keys", "show", "north.pem", "--passphrase-file", words)
    assert (shown["kind"], shown["sealed"], shown["key"]) == ("identity", True, made["key"])
    wrong = _passphrase("another horse", "wrong")
    assert "passphrase is wrong" in _refused(capsys, 2, "keys", "show", "north.pem", "--passphrase-file", wrong)
    assert "--passphrase-file" in _refused(capsys, 2, "keys", "show", "north.pem")


def test_a_passphrase_is_asked_for_twice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _typing(monkeypatch, WORDS, WORDS, WORDS)
    assert _json(capsys, "keys", "new", "north")["sealed"]
    assert _json(capsys, "keys", "show", "north.pem")["name"] == "north"
    assert asked == ["New passphrase for north.pem: ", "The same again: ", "Passphrase of north.pem: "]


@pytest.mark.parametrize(("answers", "says"), [((WORDS, WORDS + " "), "differ"), (("short",), "8 characters")])
def test_a_bad_new_passphrase_writes_nothing(
    answers: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _typing(monkeypatch, *answers)
    assert says in _refused(capsys, 2, "keys", "new", "north")
    assert _files() == set()


@pytest.mark.parametrize("content", ["", "\n", "short", f"{WORDS}\n{WORDS}", "a" * 1025])
def test_a_bad_passphrase_file_writes_nothing(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(capsys, 2, "keys", "new", "north", "--passphrase-file", _passphrase(content))
    assert _files() == {"words"}


def test_a_passphrase_that_others_can_read_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    words = _passphrase()
    Path(words).chmod(0o644)
    assert main(["keys", "new", "north", "--passphrase-file", words]) == 0
    assert "privfm: warning: words: others" in capsys.readouterr().err


def test_an_accent_is_the_same_however_it_was_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    composed, decomposed = "caf\u00e9 creme", "cafe\u0301 creme"
    _typing(monkeypatch, composed, composed, decomposed)
    assert main(["keys", "new", "north"]) == 0
    assert main(["keys", "show", "north.pem"]) == 0


def _at_a_terminal(arguments: list[str], answers: list[str]) -> tuple[int, str]:
    """Run the command on a terminal of its own; its exit code and everything that the terminal showed."""
    child, screen = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background was started without it
        os.execv(sys.executable, [sys.executable, "-m", "privfm_cli.main", *arguments])  # noqa: S606
    shown = ""
    while True:
        try:
            piece = os.read(screen, 4096).decode()
        except OSError:
            break
        shown += piece
        if answers and shown.endswith(": "):
            time.sleep(0.1)
            os.write(screen, (answers.pop(0) + "\n").encode())
    os.close(screen)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown


def test_a_real_terminal_shows_no_passphrase() -> None:
    exit_code, shown = _at_a_terminal(["keys", "new", "north"], [WORDS, WORDS])
    assert exit_code == 0, shown
    assert "fingerprint" in shown
    assert WORDS not in shown
    assert Identity.from_pem(Path("north.pem").read_bytes(), WORDS.encode()).name == "north"


def test_ctrl_c_at_the_question_writes_nothing() -> None:
    exit_code, shown = _at_a_terminal(["keys", "new", "north"], ["\x03"])
    assert exit_code == 130, shown
    assert "Traceback" not in shown
    assert _files() == set()


def test_nothing_is_asked_where_nobody_can_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--no-passphrase" in _refused(capsys, 2, "keys", "new", "north")
    both = ["--no-passphrase", "--passphrase-file", _passphrase()]
    assert "leave it out" in _refused(capsys, 2, "keys", "new", "north", *both)
    assert _files() == {"words"}


@pytest.mark.parametrize("there", ["north.pem", "north.card.json"])
def test_no_file_is_overwritten(there: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(there).write_text("precious")
    assert there in _refused(capsys, 2, "keys", "new", "north", "--no-passphrase")
    assert Path(there).read_text() == "precious"
    assert _files() == {there}


def test_a_card_that_cannot_be_written_takes_the_key_with_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("privfm_cli.identity_files.write_paper", full)
    assert "no space left" in _refused(capsys, 1, "keys", "new", "north", "--no-passphrase")
    assert _files() == set()


def _open_to_all(handle: int, _: int) -> None:
    Path(f"/proc/self/fd/{handle}").chmod(0o755)


def test_a_file_system_without_permissions_gets_no_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fchmod", _open_to_all)
    assert "lets others read" in _refused(capsys, 2, "keys", "new", "north", "--no-passphrase")
    assert _files() == set()


@pytest.mark.parametrize("name", ["coordinator", "", " north", "nor\nth", "n" * 65, "north/west", ".north"])
def test_names_that_no_roster_or_folder_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "name=" in _refused(capsys, 2, "keys", "new", name, "--no-passphrase")
    assert _files() == set()


def test_a_name_with_a_slash_takes_a_file_of_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert _json(capsys, "keys", "new", "north/west", "--no-passphrase", "--out", "nw")["card"] == "nw.card.json"
    assert "no such folder" in _refused(capsys, 2, "keys", "new", "a", "--no-passphrase", "--out", "missing/a.pem")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_not_used(mode: int, capsys: pytest.CaptureFixture[str]) -> None:
    _new()
    Path("north.pem").chmod(mode)
    for command in (["show"], ["rotate", "--no-passphrase"], ["revoke"]):
        assert "chmod 600 north.pem" in _refused(capsys, 2, "keys", command[0], "north.pem", *command[1:])
    assert _files() == {"north.pem", "north.card.json"}
    Path("north.pem").chmod(0o600)
    assert main(["keys", "show", "north.pem"]) == 0


@pytest.mark.parametrize(
    ("damage", "exit_code"),
    [
        (lambda text: text[:-20], 2),
        (lambda text: text + b" " * 5000, 2),
        (lambda text: text.replace(b"north", b"south"), 4),
        (lambda text: text.replace(b'"name"', b'"name": "x", "name"'), 2),
        (lambda text: b"", 2),
    ],
)
def test_a_damaged_card_is_named(damage: Any, exit_code: int, capsys: pytest.CaptureFixture[str]) -> None:
    _new()
    Path("card").write_bytes(damage(Path("north.card.json").read_bytes()))
    assert "card: " in _refused(capsys, exit_code, "keys", "show", "card")


@pytest.mark.parametrize("damage", [lambda pem: pem[:-8], lambda pem: pem + b"A" * 5000, lambda pem: pem[:40]])
def test_a_damaged_identity_is_named(damage: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _new()
    Path("north.pem").write_bytes(damage(Path("north.pem").read_bytes()))
    assert "north.pem: identity file is damaged" in _refused(capsys, 2, "keys", "show", "north.pem")


def test_a_rotated_key_keeps_the_old_file_and_is_signed_by_it(capsys: pytest.CaptureFixture[str]) -> None:
    _new()
    old = Path("north.pem").read_bytes()
    made = _json(capsys, "keys", "rotate", "north.pem", "--no-passphrase")
    card = Card.from_json(Path(made["card"]).read_bytes())
    assert card.replaces is not None
    assert card.replaces.key == Identity.from_pem(old, None).public != card.key
    assert Path("north.pem").read_bytes() == old
    assert made["identity"] == f"north.{card.fingerprint[:5]}.pem"
    assert Path(made["identity"]).stat().st_mode & 0o777 == 0o600
    assert made["replaces"] == fingerprint(card.replaces.key)
    third = _json(capsys, "keys", "rotate", made["identity"], "--no-passphrase")
    assert third["identity"] == f"north.{third['fingerprint'][:5]}.pem"
    assert third["replaces"] == made["fingerprint"]


def test_a_rotated_key_is_sealed_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    words, other = _passphrase(), _passphrase("another horse", "other")
    assert main(["keys", "new", "north", "--passphrase-file", words]) == 0
    same = _json(capsys, "keys", "rotate", "north.pem", "--passphrase-file", words, "--out", "same")
    rotate = ["keys", "rotate", "north.pem", "--passphrase-file", words, "--new-passphrase-file", other]
    new = _json(capsys, *rotate, "--out", "new")
    for made, opens in ((same, WORDS), (new, "another horse")):
        assert Identity.from_pem(Path(made["identity"]).read_bytes(), opens.encode()).name == "north"


def test_a_revocation_is_the_keys_own_word(capsys: pytest.CaptureFixture[str]) -> None:
    _new()
    made = _json(capsys, "keys", "revoke", "north.pem")
    revocation = Revocation.from_json(Path("north.revocation.json").read_bytes())
    assert revocation.key.hex() == made["key"]
    assert _json(capsys, "keys", "show", "north.revocation.json")["kind"] == "revocation"
    assert "is there already" in _refused(capsys, 2, "keys", "revoke", "north.pem")
    assert "no identity file" in _refused(capsys, 2, "keys", "revoke", "north.card.json")


def test_what_a_person_reads(capsys: pytest.CaptureFixture[str]) -> None:
    _new()
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("north\n  fingerprint  ")
    assert "read them the fingerprint by telephone" in printed.out
    assert main(["keys", "show", "north.card.json"]) == 0
    assert "a card, soundly signed" in capsys.readouterr().out
    assert main(["keys", "show", "north.pem"]) == 0
    assert "not sealed" in capsys.readouterr().out
