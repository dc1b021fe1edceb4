"""`privfm audit` says in a line what it found, writes audit.json, and fails loudly on a leak."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image
from privfm_attacks import run as audit_run_module
from privfm_attacks.audits import AUDITS, Subject
from privfm_attacks.verdicts import AuditResult, Verdict
from privfm_cli.main import main

from privfm.errors import ModelError, RunError
from privfm.federation.directory import RunDirectory, begun_plan
from privfm.federation.observer import Observer
from privfm.federation.training import train
from privfm.plan import DataPlan, parse_plan

PLAN = {
    "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3, "min_patients": 4},
    "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
    "privacy": {"images_per_unit": 2, "views": 1, "sample_rate": 1.0},  # canaries then settle it within two steps
    "federation": {"rounds": 2, "local_steps": 1, "retry_rounds": 1},
    "evaluation": {"probe": False},
    "performance": {"device": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("audited") / "run"
    train(parse_plan(PLAN), out)
    return out


@pytest.fixture(autouse=True)
def nothing_found_yet(run: Path) -> None:
    """What an earlier test's audits found would be beside this one's."""
    for path in run.glob("audit.json*"):
        path.unlink()


QUICK = ("mechanism", "canaries", "transcript", "ledgers")


@pytest.mark.slow
def test_every_audit_has_its_say_of_a_finished_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["audit", str(run), "--quick"])
    told = {each["name"]: each["verdict"] for each in json.loads((run / "audit.json").read_text())["audits"]}
    assert list(told) == [name for name in AUDITS if name != "forget"]  # nobody asked out
    assert told.pop("membership") != "LEAK"  # its quick control is not caught on every network
    told.pop("property")  # of three hospitals of unequal weight, which is a coin's toss
    assert set(told.values()) == {"NO LEAK DETECTED"}


def test_a_finished_run_passes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(run), *(word for name in QUICK for word in ("--only", name))]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("mechanism: NO LEAK DETECTED\n")
    assert "ledgers: NO LEAK DETECTED\n" in printed.out
    assert "auditing: mechanism" in printed.err
    told = json.loads((run / "audit.json").read_text())
    assert {each["made"][:2] for each in told["audits"]} == {"20"}
    assert told["run"] == RunDirectory(run).facts().run
    assert [(each["name"], each["verdict"]) for each in told["audits"]] == [
        (name, "NO LEAK DETECTED") for name in QUICK
    ]
    assert all(finding["passed"] for each in told["audits"] for finding in each["findings"])


def test_one_audit_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(run), "--only", "ledgers", "--json"]) == 0
    (audit,) = json.loads(capsys.readouterr().out)["audits"]
    assert audit["name"] == "ledgers"
    assert audit["figures"] == {"hospitals": 3}


def test_what_was_found_before_stays_until_it_is_looked_at_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second audit of something else must not take a leak off the report."""
    assert main(["audit", str(run), "--only", "transcript", "--only", "ledgers"]) == 0
    path = run / "audit.json"
    kept = json.loads(path.read_text())
    (leak,) = (each for each in kept["audits"] if each["name"] == "transcript")
    leak |= {"verdict": "LEAK", "made": "2026-01-01T00:00:00+00:00"}
    path.write_text(json.dumps(kept))
    capsys.readouterr()
    assert main(["audit", str(run), "--only", "ledgers"]) == 4
    printed = capsys.readouterr()
    assert "transcript: LEAK, as found 2026-01-01" in printed.out
    assert "transcript: not passed; do not publish" in printed.err
    assert "LEAK" in (run / "report.html").read_text()
    path.write_text("[]")  # no audit wrote that
    assert main(["audit", str(run), "--only", "transcript"]) == 4
    told = capsys.readouterr().err
    assert "earlier audits could not be read" in told
    assert "earlier audits: not passed; do not publish" in told
    assert (run / "audit.json.damaged").read_text() == "[]"
    assert main(["audit", str(run), "--only", "transcript"]) == 0
    assert "earlier audits could not be read" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rounds.jsonl", "ledgers: INCONCLUSIVE\n  could not be checked: "),
        ("roster.json", "transcript: INCONCLUSIVE\n  not done: "),
        ("ledgers/hospital-2.sqlite", "ledgers: INCONCLUSIVE\n  could not be checked: "),
    ],
)
def test_a_file_that_is_gone_is_named_and_is_no_leak(
    run: Path, tmp_path: Path, name: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    assert main(["audit", str(tmp_path / "run"), "--only", "transcript", "--only", "ledgers"]) == 4
    printed = capsys.readouterr()
    assert told in printed.out
    assert "Traceback" not in printed.err
    if name == "rounds.jsonl":
        assert "transcript: INCONCLUSIVE" in printed.out
    if name != "roster.json":
        assert "LEAK" not in printed.out.replace("NO LEAK", "")


def test_a_run_without_its_plan_is_told_what_can_still_be_done(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "plan.toml").unlink()
    assert main(["audit", str(tmp_path / "run")]) == 4
    assert "privfm audit MODEL --data DIR --held-out DIR" in capsys.readouterr().err


def test_a_mechanism_that_could_not_be_tried_forbids_publishing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*args: object) -> None:
        raise ModelError("gradients of one patient cannot be told from another's")

    monkeypatch.setattr("privfm_attacks.audits.audit_mechanism", refused)
    assert main(["audit", str(run), "--only", "mechanism"]) == 4
    assert "mechanism: not passed" in capsys.readouterr().err
    assert main(["audit", str(run), "--only", "ledgers"]) == 4  # still


def test_what_is_told_of_own_images_stays_at_the_hospital(run: Path, tmp_path: Path) -> None:
    own = begun_plan(RunDirectory(run)).model_copy(update={"data": DataPlan(source="elsewhere")})
    subject = Subject(own, None, RunDirectory(run), False, frozenset({"membership"}), Observer())  # type: ignore[arg-type]
    (result,) = audit_run_module._made(subject, ["membership"]).audits
    assert "elsewhere" in result.sentence
    assert result.local
    assert "elsewhere" not in json.dumps(result.shareable().to_json())


@pytest.mark.parametrize("error", [ValueError, TypeError, OverflowError, IndexError, RecursionError, RuntimeError])
def test_an_audit_that_breaks_off_leaves_the_others_be(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    def broken(*args: object) -> None:
        raise error("no such\nrow")

    monkeypatch.setattr("privfm_attacks.audits.audit_transcript", broken)
    assert main(["audit", str(run), "--only", "transcript", "--only", "ledgers"]) == 0
    printed = capsys.readouterr().out
    assert f"transcript: INCONCLUSIVE\n  not done: broke off: {error.__name__}: no such row" in printed
    assert "ledgers: NO LEAK DETECTED" in printed


def test_what_is_told_of_people_held_out_stays_at_the_hospital(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is of made-up patients, but those whom it is compared with are not."""
    folder = tmp_path / "others" / "Doe_Jane_1963"
    folder.mkdir(parents=True)
    Image.new("L", (16, 16)).save(folder / "a.png")
    sound = AuditResult("membership", Verdict.NO_LEAK_DETECTED, "0.5", "one", "", (), {"auc": 0.5})
    monkeypatch.setattr("privfm_attacks.audits.audit_membership", lambda *_: sound)
    arguments = ["audit", str(run), "--only", "membership", "--held-out", str(tmp_path / "others")]
    assert main(arguments) == 0
    (told,) = json.loads((run / "audit.json").read_text())["audits"]
    assert (told["local"], told["figures"]) == (True, {})
    (folder / "a.png").write_bytes(b"no image")
    (run / "audit.json").unlink()
    assert main(arguments) == 0
    told = (run / "audit.json").read_text()
    assert "not done; why is told at the hospital" in told
    assert "Doe" not in told
    assert "Doe" in (run / "hospitals" / "audit.json").read_text()
    (run / "hospitals" / "audit.json").unlink()


def test_only_what_quick_leaves_something_out_of_was_tried_less(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = AuditResult("property", Verdict.NO_LEAK_DETECTED, "0.5", "one", "", ())
    monkeypatch.setattr("privfm_attacks.audits.audit_property", lambda *_: sound)
    assert main(["audit", str(run), "--only", "property", "--only", "transcript", "--quick"]) == 0
    told = json.loads((run / "audit.json").read_text())["audits"]
    assert {each["name"]: each["quick"] for each in told} == {"property": True, "transcript": False}


@pytest.mark.parametrize("name", ["run.json", "rounds.jsonl", "roster.json"])
def test_a_file_that_is_nested_without_end_is_a_line(run: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).write_text("[" * 200_000)
    with pytest.raises(RunError, match="damaged") if name == "run.json" else nullcontext():
        audit_run_module.audit_run(tmp_path / "run", ["transcript", "ledgers"])


def test_records_that_ledgers_do_not_know_are_a_leak(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = RunDirectory(run).root / "rounds.jsonl"
    kept = path.read_text()
    lines = [json.loads(line) for line in kept.splitlines()]
    lines[0]["transcript"] = "00" * 32
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        assert main(["audit", str(run), "--only", "ledgers"]) == 4
    finally:
        path.write_text(kept)
    printed = capsys.readouterr()
    assert "ledgers: LEAK" in printed.out
    assert "do not publish this model" in printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "everything"], "no such audit; there are " + ", ".join(AUDITS)),
        (["--only", "transcript", "--epsilon", "1"], "leave it out"),
        (["elsewhere"], "elsewhere"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    where = str(run) if arguments[0] == "--only" else str(tmp_path / arguments.pop())
    assert main(["audit", where, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_plan_is_rehearsed_before_it_is_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(run / "plan.toml")
    assert main(["audit", "--rehearse", plan, "--only", "mechanism", "--only", "canaries", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["audits"]
    assert [(each["name"], each["verdict"]) for each in told] == [
        ("mechanism", "NO LEAK DETECTED"),
        ("canaries", "NO LEAK DETECTED"),
    ]
    assert main(["audit", "--rehearse", plan, "--only", "ledgers"]) == 2
    assert "needs a run that is over" in capsys.readouterr().err
    assert main(["audit"]) == main(["audit", str(run), "--rehearse", plan]) == 2
    assert "one of the two" in capsys.readouterr().err


def test_what_cannot_be_audited_is_said_and_the_rest_is_done(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, ledger = run / "network.safetensors", run / "ledgers" / "hospital-2.sqlite"
    kept, spent = network.read_bytes(), ledger.read_bytes()
    try:
        network.write_bytes(b"damaged")
        ledger.unlink()
        assert main(["audit", str(run), "--only", "membership", "--only", "ledgers", "--quick"]) == 4
    finally:
        network.write_bytes(kept)
        ledger.write_bytes(spent)
        ledger.chmod(0o600)
    printed = capsys.readouterr()
    assert "membership: INCONCLUSIVE\n  not done:" in printed.out
    assert "hospital-2.sqlite" in printed.out
    assert "left out by --quick" not in printed.out  # nothing was tried that could have been left out
    assert "ledgers: not passed; do not publish this model" in printed.err


def test_membership_of_ones_own_images_waits_to_be_asked() -> None:
    plan = parse_plan({"data": {"source": "elsewhere"}})
    subject = Subject(plan, None, RunDirectory(Path()), False, frozenset(), Observer())  # type: ignore[arg-type]
    assert "asks for it by name" in AUDITS["membership"].attempt(subject).sentence


def test_another_version_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("privfm_attacks.run.__version__", "9.9")
    assert main(["audit", str(run), "--only", "transcript"]) == 0
    assert "9.9" not in capsys.readouterr().err
    assert main(["audit", str(run), "--only", "canaries"]) == 0
    assert "the code of 9.9 was tried: canaries" in capsys.readouterr().err


def test_the_statement_tells_what_canaries_showed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(run), "--only", "canaries"]) == 0
    audits = json.loads((run / "audit.json").read_text())["audits"]
    (figures,) = (each["figures"] for each in audits if each["name"] == "canaries")
    capsys.readouterr()
    assert main(["budget", "statement", str(run), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["audits"]
    assert (told["audit"], told["verdict"]) == ("canaries", "NO LEAK DETECTED")
    assert (told["bound"]["lower_bound"], told["bound"]["confidence"]) == (figures["bound"], 0.95)
    assert "canaries: NO LEAK DETECTED; epsilon is at least" in (run / "report.html").read_text()
    kept = (run / "audit.json").read_text()
    (run / "audit.json").write_text('{"audits": [{}]}')
    assert main(["budget", "statement", str(run)]) == 4
    assert "run privfm audit again" in capsys.readouterr().err
    (run / "audit.json").write_text(kept)
