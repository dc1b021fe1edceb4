"""`privfm budget`: the same numbers as the library, read from ledgers without changing them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from privfm_cli.main import main

from privfm.dp.accounting import epsilon
from privfm.dp.calibration import cap_for_plan
from privfm.dp.events import SampledGaussian
from privfm.dp.ledger import Ledger
from privfm.errors import BudgetExceeded
from privfm.plan import parse_plan, stored_plan

STEP = SampledGaussian(0.5, 2.0, 2)


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def _charge(path: Path, hospital: str, rounds: int, *, private: bool = True) -> None:
    with Ledger.create(path, hospital) as ledger:
        ledger.open_run("run-1", bytes(32), [STEP], rounds=5, retry_rounds=1, private=private)
        for number in range(rounds):
            charge = ledger.charge("run-1", number, 0, context=bytes(32))
            ledger.close(charge, "aborted" if number == 0 else "released")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with three ledgers."""
    plan = parse_plan(
        {
            "privacy": {"epsilon": 6, "delta": 1e-6},
            "hospitals": [{"id": name, "nominal_units": 60} for name in ("north", "south", "west")],
        }
    )
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    (tmp_path / "ledgers").mkdir()
    for rounds, name in enumerate(("north", "south", "west")):
        _charge(tmp_path / "ledgers" / f"{name}.sqlite", name, rounds)
    return tmp_path


@pytest.mark.parametrize("command", ["show", "cap", "verify"])
def test_a_hospital_without_its_ledger_is_not_left_out(
    run: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "run.json").write_text(json.dumps({"plan_hash": stored_plan(run / "plan.toml").hash().hex()}))
    (run / "ledgers" / "south.sqlite").unlink()
    assert main(["budget", command, str(run)]) == 4
    assert "south.sqlite: no such ledger; restore a backup" in capsys.readouterr().err


def test_a_plan_that_was_changed_says_nothing_of_what_is_allowed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "run.json").write_text(json.dumps({"plan_hash": "00" * 32}))
    assert main(["budget", "show", str(run)]) == 4
    assert "plan.toml: not the plan that the run was begun with; restore it" in capsys.readouterr().err


def test_a_ledger_that_is_older_than_a_peer_saw_it_shows_too_little(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open(run / "ledgers" / "north.sqlite") as north:
        north.remember_peers({"south": (7, bytes(32))})
    assert main(["budget", "show", str(run)]) == 0
    told = capsys.readouterr()
    assert "warning: more was spent than is shown" in told.err
    assert "south.sqlite: stands at counter" in told.err
    assert "came from a backup" in _json(capsys, "budget", "show", str(run))["warnings"][0]


def test_showing_a_run_composes_each_ledger_under_the_plans_delta(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    north, south, west = _json(capsys, "budget", "show", str(run))["hospitals"]
    assert (north["hospital"], north["epsilon"], north["runs"][0]["rounds_charged"]) == ("north", 0.0, 0)
    assert south["epsilon"] == epsilon([STEP], 1e-6)
    assert west["epsilon"] == epsilon([STEP.repeated(2)], 1e-6)
    assert (west["steps"], west["epsilon_allowed"], west["delta"]) == (4, 6.0, 1e-6)
    assert west["runs"][0] | {"epsilon": None} == {
        "run": "run-1",
        "private": True,
        "rounds_charged": 2,
        "rounds_released": 1,
        "rounds_aborted": 1,
        "rounds_unknown": 0,
        "steps": 4,
        "epsilon": None,
    }


def test_a_patient_at_several_hospitals_is_composed_where_the_plan_declares_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _json(capsys, "budget", "show", str(run))["composed"] is None
    plan = run / "plan.toml"
    plan.write_text(plan.read_text().replace("max_hospitals_per_patient = 1", "max_hospitals_per_patient = 2"))
    both = epsilon([STEP.repeated(3)], 1e-6)
    composed = _json(capsys, "budget", "show", str(run))["composed"]
    assert composed == {"hospitals": ["south", "west"], "epsilon": both, "delta": 1e-6}
    assert main(["budget", "show", str(run), "--delta", "1e-4"]) == 0
    both = epsilon([STEP.repeated(3)], 1e-4)
    assert capsys.readouterr().out.endswith(f"\nA patient seen at south, west: epsilon {both:.3f} at delta 0.0001.\n")


def test_showing_one_ledger_at_a_delta_of_ones_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "ledgers" / "west.sqlite"
    before = path.read_bytes()
    (west,) = _json(capsys, "budget", "show", str(path), "--delta", "1e-4")["hospitals"]
    assert west["epsilon"] == epsilon([STEP.repeated(2)], 1e-4)
    assert west["epsilon_allowed"] is None
    assert path.read_bytes() == before


def test_the_table_names_hospitals_and_runs_that_are_not_private(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _charge(tmp_path / "a.sqlite", "st-mary", 1)
    _charge(tmp_path / "b.sqlite", "st-paul", 1, private=False)
    assert main(["budget", "show", str(tmp_path)]) == 0
    heading, mary, paul = capsys.readouterr().out.splitlines()
    assert heading.endswith("not private")
    assert mary.startswith("st-mary")
    assert mary.endswith("no")
    assert paul.endswith("yes")


def test_a_whole_ledger_is_verified_and_a_changed_one_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", "verify", str(run)]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["whole"] * 3
    path = run / "ledgers" / "south.sqlite"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"aborted", b"aborteD"))
    assert main(["budget", "verify", str(run)]) == 4
    error = capsys.readouterr().err
    assert "south.sqlite" in error
    assert error.count("\n") == 1


def test_a_damaged_stored_vector_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "ledgers" / "west.sqlite"
    with Ledger.open(path) as ledger:
        ledger.store_update(ledger.charge("run-1", 3, 0, context=bytes(32)), b"noised and quantised")
    _json(capsys, "budget", "verify", str(path))
    path.write_bytes(path.read_bytes().replace(b"noised and", b"noised AND"))
    assert main(["budget", "verify", str(path)]) == 4
    assert "the stored vector of round 3 is damaged" in capsys.readouterr().err


def test_a_first_cap_suits_the_newest_run_and_is_in_force_at_once(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [each["epsilon"] for each in _json(capsys, "budget", "cap", str(run))["hospitals"]] == [None] * 3
    path = run / "ledgers" / "west.sqlite"
    assert main(["budget", "cap", str(run), "--epsilon", "4", "--json"]) == 0
    printed = capsys.readouterr()
    west = json.loads(printed.out)["hospitals"][2]
    cap = cap_for_plan(epsilon=4.0, delta=1e-6, sample_rate=0.5, steps=12)
    assert (west["epsilon"], west["delta"], west["order"]) == (4.0, 1e-6, cap.order)
    assert west["rounds_that_fit"] == cap.rounds_that_fit([STEP], [STEP.repeated(2)])
    assert west["share_left"] == cap.remaining([STEP.repeated(2)])
    assert "proved only if" in printed.err
    assert f"west: only {west['rounds_that_fit']} of the 4 rounds left of its run, retries included, fit" in printed.err
    with Ledger.open(path) as ledger:
        for number in range(2, 2 + west["rounds_that_fit"]):
            ledger.charge("run-1", number, 0, context=bytes(32))
        with pytest.raises(BudgetExceeded, match="lifetime cap"):
            ledger.charge("run-1", 9, 0, context=bytes(32))
    _json(capsys, "budget", "verify", str(path))


def test_a_cap_can_be_lowered_and_never_raised(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "ledgers" / "west.sqlite"
    (first,) = _json(capsys, "budget", "cap", str(path), "--epsilon", "9", "--delta", "1e-4")["hospitals"]
    (lower,) = _json(capsys, "budget", "cap", str(path), "--epsilon", "8")["hospitals"]
    assert (lower["epsilon"], lower["delta"], lower["order"]) == (8.0, 1e-4, first["order"])
    before = [each.read_bytes() for each in sorted((run / "ledgers").iterdir())]
    for arguments, says in (
        (["--epsilon", "8.5"], "--epsilon 8.5: a cap can only be lowered, and that of west is 8"),
        (["--epsilon", "7", "--delta", "1e-5"], "--delta 1e-05: the cap of west keeps its delta of 0.0001"),
        (["--epsilon", "0"], "--epsilon 0: must be above 0"),
        (["--epsilon", "nan"], "--epsilon nan: must be above 0"),
        (["--epsilon", "0.01"], "--epsilon 0.01: no cap for"),
        (["--delta", "1e-4"], "--delta 0.0001: goes with --epsilon"),
    ):
        assert main(["budget", "cap", str(run), *arguments]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert [each.read_bytes() for each in sorted((run / "ledgers").iterdir())] == before
    assert main(["budget", "cap", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["west", "8", "0.0001"]


def test_a_cap_can_be_lowered_to_what_is_spent_and_the_refusal_says_how(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _json(capsys, "budget", "cap", str(run), "--epsilon", "8")
    for name in ("south", "west"):
        path = run / "ledgers" / f"{name}.sqlite"
        assert main(["budget", "cap", str(path), "--epsilon", "0.5"]) == 2
        told = capsys.readouterr().err
        assert "and leaves room for nothing more" in told
        full = told.rpartition("--epsilon ")[2].split()[0]
        (lower,) = _json(capsys, "budget", "cap", str(path), "--epsilon", full)["hospitals"]
        assert (lower["rounds_that_fit"], lower["share_left"]) == (0, 0.0)
        with Ledger.open(path) as ledger:
            cap = ledger.cap
            assert cap is not None
            assert cap.steps_that_fit(SampledGaussian(0.01, 100.0, 1), ledger.events()) == 0
            assert epsilon(ledger.events(), cap.delta) < cap.epsilon <= 8
            with pytest.raises(BudgetExceeded, match="lifetime cap"):
                ledger.charge("run-1", 4, 0, context=bytes(32))
        assert main(["budget", "cap", str(path), "--epsilon", "0.5"]) == 2
        assert f"the one of {full} in force leaves room for nothing more" in capsys.readouterr().err
    north = run / "ledgers" / "north.sqlite"  # which has spent nothing
    assert main(["budget", "cap", str(north), "--epsilon", "0.5"]) == 2
    told = capsys.readouterr().err
    assert "leaves room for next to nothing" in told
    least = told.rpartition("--epsilon ")[2].split()[0]
    (lower,) = _json(capsys, "budget", "cap", str(north), "--epsilon", least)["hospitals"]
    assert lower["rounds_that_fit"] == 0


def test_what_is_left_of_a_cap_is_said_in_its_unit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(run / "ledgers" / "west.sqlite")
    assert main(["budget", "cap", path]) == 0
    assert "no share of epsilon" not in capsys.readouterr().out
    assert main(["budget", "cap", path, "--epsilon", "8"]) == 0
    heading, *_, last = capsys.readouterr().out.splitlines()
    assert "divergence left" in heading
    assert last.endswith("no share of epsilon.")


def test_a_ledger_in_use_keeps_its_cap(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger.open(run / "ledgers" / "west.sqlite"):
        assert main(["budget", "cap", str(run), "--epsilon", "9"]) == 1
        assert "west.sqlite" in capsys.readouterr().err
    assert [each["epsilon"] for each in _json(capsys, "budget", "cap", str(run))["hospitals"]] == [None] * 3


def test_a_statement_needs_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run, run / "ledgers" / "west.sqlite", run / "nothing"):
        assert main(["budget", "statement", str(path)]) == 2
        error = capsys.readouterr().err
        assert f"{path}: a statement needs the run's plan; give a run's folder" in error
        assert error.count("\n") == 1


def test_a_folder_without_ledgers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "verify"):
        assert main(["budget", command, str(tmp_path)]) == 2
        assert f"{tmp_path}: no ledger here" in capsys.readouterr().err
