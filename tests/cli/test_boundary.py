"""Whatever goes wrong ends in one line on standard error and the exit code that the help promises."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from privfm_cli import main as boundary
from privfm_cli.app import EPILOG
from privfm_cli.main import main

from privfm import __version__, errors
from privfm.dp.ledger import Ledger

PRIVFM = [sys.executable, "-m", "privfm_cli.main"]


def test_version_and_help_are_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"privfm {__version__}\n"
    assert main(["--help"]) == 0
    assert "Exit codes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["train", "--epsilom", "8"], "--epsilom"),
        (["train", "--epsilon", "many"], "--epsilon"),
        (["train", "--epsilon"], "--epsilon"),
        (["train", "--epsilon", "0"], "--epsilon"),
        (["train", "--delta", "0.5"], "--delta"),
        (["train", "--unit", "eye"], "--unit"),
        (["train", "--trainable", "first-1"], "--trainable"),
        (["train", "--nominal-units", "-3"], "--nominal-units"),
        (["train", "--resume"], "--out"),
        (["train", "no-such-plan.toml"], "no-such-plan.toml"),
        (["trian"], "trian"),
        (["data", "check", "no-such-folder"], "no-such-folder"),
        (["report", "no-such-folder"], "no-such-folder"),
        (["budget", "plan"], "--nominal-units"),
        (["budget", "plan", "--nominal-units", "60", "--steps", "9"], "--sample-rate"),
        (["budget", "plan", "--nominal-units", "60", "--sample-rate", "2", "--steps", "9"], "--sample-rate"),
        (["budget", "plan", "--nominal-units", "60", "--sample-rate", "0.5"], "--rounds"),
        (["budget", "show", "no-such-ledger"], "no-such-ledger"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    arguments: list[str],
    names: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("privfm: error: ")
    assert printed.err.count("\n") == 1
    assert names in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "exit_code", "says"),
    [
        (errors.InputError("images/a.png: empty"), 2, "images/a.png: empty"),
        (errors.BudgetExceeded("nothing left"), 3, "nothing left"),
        (errors.LedgerError("north.sqlite: damaged"), 4, "north.sqlite: damaged"),
        (errors.ProtocolError("bad share", ("north",)), 4, "bad share"),
        (errors.RunError("too few\nhospitals"), 4, "too few hospitals"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "runs/x: no space left"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "plan"), 2, "plan: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, "runs: Permission denied"),
        (OSError(errno.EIO, "Input/output error", "disk"), 1, "disk: Input/output error"),
    ],
)
def test_every_error_has_its_exit_code(
    raised: Exception,
    exit_code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: list[str]) -> None:
        raise raised

    monkeypatch.setattr(boundary, "_run", fail)
    assert main([]) == exit_code
    printed = capsys.readouterr()
    assert printed.err.startswith(f"privfm: error: {says}")
    assert printed.err.count("\n") == 1
    assert f" {exit_code} " in f" {EPILOG} "


def test_a_programming_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[str]) -> None:
        raise ValueError("clip_norm=-1")

    monkeypatch.setattr(boundary, "_run", fail)
    with pytest.raises(ValueError, match="clip_norm"):
        main([])


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(_: list[str]) -> None:
        raise KeyboardInterrupt("go on with: privfm train --out runs/a --resume")

    monkeypatch.setattr(boundary, "_run", stop)
    assert main([]) == 130
    assert capsys.readouterr().err == "privfm: interrupted; go on with: privfm train --out runs/a --resume\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen(
        [*PRIVFM, "train", "--print-plan"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


def heed_interrupts() -> None:
    """In a child whose parents were started in the background, and so ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_signal_ends_a_real_process_in_one_line() -> None:
    slow = (
        "import privfm_cli.main as m, time, sys\nm._run = lambda _: time.sleep(60)\n"
        "print('up', flush=True)\nsys.exit(m.main())"
    )
    command, pipe = [sys.executable, "-c", slow], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, preexec_fn=heed_interrupts) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b"privfm: interrupted\n"


HEAVY = {"torch", "numpy", "scipy", "pydantic", "matplotlib", "opacus", "timm", "sklearn", "dp_accounting", "PIL"}


def _imported(*arguments: str) -> set[str]:
    """Top-level modules that a process holds after a command."""
    program = (
        "import sys, io, contextlib\nfrom privfm_cli.main import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()):\n    code = main({list(arguments)!r})\n"
        "print(code, *{name.split('.')[0] for name in sys.modules})"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    code, *modules = done.stdout.split()
    assert code == "0", done.stderr
    return set(modules)


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["train", "--help"],
        ["tune", "--help"],
        ["budget", "--help"],
        ["keys", "new", "--help"],
        ["roster", "make", "--help"],
        ["--version"],
    ],
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    assert not _imported(*command) & HEAVY


def test_budget_is_free_of_torch(tmp_path: Path) -> None:
    plan = ["budget", "plan", "--nominal-units", "60", "--sample-rate", "0.5", "--steps", "4"]
    assert not _imported(*plan) & {"torch", "opacus", "timm", "torchvision", "matplotlib"}
    three = "".join(f'[[hospitals]]\nid = "{name}"\nnominal_units = 60\n' for name in ("north", "south", "west"))
    (tmp_path / "plan.toml").write_text(three)
    Ledger.create(tmp_path / "north.sqlite", "north").shut()
    many = ["plan", str(tmp_path / "plan.toml"), "--parameters", "5000", "--after", str(tmp_path)]
    for arguments in (many, ["show", str(tmp_path)], ["cap", str(tmp_path)], ["verify", str(tmp_path)]):
        assert not _imported("budget", *arguments) & {"torch", "opacus", "timm", "torchvision", "matplotlib"}


def test_keys_are_free_of_torch(tmp_path: Path) -> None:
    new = ["keys", "new", "north", "--no-passphrase", "--out", str(tmp_path / "north.pem")]
    assert not _imported(*new) & {"torch", "opacus", "timm", "pydantic", "dp_accounting"}
