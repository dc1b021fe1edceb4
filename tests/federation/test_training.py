import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file

from privfm.dp.accounting import epsilon
from privfm.dp.coins import InjectedCoins
from privfm.dp.ledger import Ledger
from privfm.errors import InputError, ModelError, PlanError, VerificationError
from privfm.federation.directory import RunDirectory
from privfm.federation.observer import Observer
from privfm.federation.records import RunResult
from privfm.federation.training import train
from privfm.plan import Plan

TinyPlan = Callable[..., Plan]

LOCAL_WORDS = ("loss", "drawn", "units", "count", "norm")


def injected(hospital: str) -> InjectedCoins:
    return InjectedCoins(f"test {hospital}".encode())


def test_a_run_leaves_what_it_promises(finished_run: RunResult) -> None:
    out = finished_run.out
    names = {path.name for path in out.iterdir()}
    assert names >= {"plan.toml", "model.safetensors", "config.json", "rounds.jsonl", "privacy.json", "result.json"}
    assert {path.name for path in (out / "ledgers").iterdir()} == {f"hospital-{i}.sqlite" for i in (1, 2, 3)}
    assert json.loads((out / "run.json").read_text())["plan_hash"] == RunDirectory(out).plan.hash().hex()
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


def test_the_model_loads_in_plain_timm(finished_run: RunResult) -> None:
    config = json.loads((finished_run.out / "config.json").read_text())
    model = timm.create_model(config["architecture"], **config["model_args"])
    model.load_state_dict(load_file(finished_run.model), strict=True)


@pytest.mark.parametrize(("accountant", "tolerance"), [("prv", 0.03), ("rdp", 0.25)])
def test_another_accountant_agrees_with_the_ledgers_epsilon(
    finished_run: RunResult, accountant: str, tolerance: float
) -> None:
    for hospital in finished_run.hospitals:
        with Ledger.open(finished_run.out / "ledgers" / f"{hospital.id}.sqlite", read_only=True) as ledger:
            again = epsilon(ledger.events(), hospital.delta, accountant)
        assert hospital.epsilon * (1 - 0.01) <= again <= hospital.epsilon * (1 + tolerance)
        assert hospital.epsilon <= hospital.epsilon_allowed


def test_steps_on_the_ledger_are_the_planned_ones(finished_run: RunResult) -> None:
    assert [hospital.steps for hospital in finished_run.hospitals] == [4, 4, 4]


def test_the_coordinators_record_holds_nothing_local(finished_run: RunResult) -> None:
    for line in (finished_run.out / "rounds.jsonl").read_text().splitlines():
        record = json.loads(line)
        local = {key for key in record if any(word in key for word in LOCAL_WORDS)}
        assert local == {"public_loss", "update_norm", "local_loss"}
        assert record["local_loss"] is None  # the plan does not ask for it


def test_the_result_has_the_keys_that_programs_read(finished_run: RunResult) -> None:
    content = json.loads(json.dumps(finished_run.to_json()))
    assert set(content["hospitals"][0]) >= {
        "id", "nominal_units", "sample_rate", "noise_multiplier", "steps", "epsilon", "delta",
    }  # fmt: skip
    assert set(content) >= {"model", "rounds", "seconds", "probe"}
    assert set(content["probe"]) >= {"trained", "untrained", "noise_only"}


def test_what_is_a_hospitals_own_is_readable_for_its_owner_only(finished_run: RunResult) -> None:
    own = finished_run.out / "hospitals" / "hospital-1"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert stat.S_IMODE((own / "identity.pem").stat().st_mode) == 0o600
    facts = [json.loads(line) for line in (own / "local.jsonl").read_text().splitlines()]
    assert any(fact.get("loss") for fact in facts)


def test_injected_coins_repeat_a_run_bit_for_bit_and_mark_it(tiny_plan: TinyPlan, tmp_path: Path) -> None:
    plan = tiny_plan(evaluation={"probe": False})
    first, again = (train(plan, tmp_path / name, coins_of=injected) for name in ("first", "again"))
    assert first.model.read_bytes() == again.model.read_bytes()
    assert not first.private
    assert "NOT PRIVATE" in json.loads((first.out / "privacy.json").read_text())["randomness"]
    with Ledger.open(first.out / "ledgers" / "hospital-1.sqlite", read_only=True) as ledger:
        assert not ledger.private


def test_a_run_without_noise_says_so_for_ever(tiny_plan: TinyPlan, tmp_path: Path) -> None:
    warnings: list[str] = []

    class Hearing(Observer):
        def warn(self, message: str) -> None:
            warnings.append(message)

    run = train(tiny_plan(evaluation={"probe": False}, privacy={"dp": False}), tmp_path / "run", observer=Hearing())
    assert not run.private
    assert any("NO DIFFERENTIAL PRIVACY" in warning for warning in warnings)
    assert "the plan leaves noise out" in json.loads((run.out / "privacy.json").read_text())["randomness"]
    with Ledger.open(run.out / "ledgers" / "hospital-1.sqlite", read_only=True) as ledger:
        assert not ledger.private
        assert epsilon(ledger.events(), 1e-5) > 1e12


def test_two_private_runs_with_one_seed_differ(finished_run: RunResult, tiny_plan: TinyPlan, tmp_path: Path) -> None:
    other = train(tiny_plan(evaluation={"probe": False}), tmp_path / "other")
    assert other.private
    assert other.model.read_bytes() != finished_run.model.read_bytes()
    starts = [(run.out / "start.safetensors").read_bytes() for run in (other, finished_run)]
    assert starts[0] == starts[1]


def test_an_existing_folder_is_left_alone(finished_run: RunResult, tiny_plan: TinyPlan) -> None:
    before = finished_run.model.stat().st_mtime_ns
    with pytest.raises(InputError, match="--resume"):
        train(tiny_plan(), finished_run.out)
    assert finished_run.model.stat().st_mtime_ns == before


def test_a_finished_run_can_be_resumed_without_spending(finished_run: RunResult) -> None:
    directory = RunDirectory(finished_run.out)
    again = train(directory.plan, finished_run.out, resume=True)
    assert [hospital.epsilon for hospital in again.hospitals] == [
        hospital.epsilon for hospital in finished_run.hospitals
    ]
    assert (again.public_loss, again.probe) == (finished_run.public_loss, finished_run.probe)  # no second draw


def test_a_run_without_its_records_spends_nothing_more(finished_run: RunResult, tmp_path: Path) -> None:
    shutil.copytree(finished_run.out, tmp_path / "run")
    (tmp_path / "run" / "rounds.jsonl").unlink()
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(VerificationError, match=r"rounds\.jsonl: does not hold the 2 finished rounds; restore it"):
        train(directory.plan, tmp_path / "run", resume=True)


def test_a_run_is_not_resumed_under_another_plan(finished_run: RunResult, tiny_plan: TinyPlan) -> None:
    with pytest.raises(PlanError, match="--resume"):
        train(tiny_plan(privacy={"epsilon": 4.0}), finished_run.out, resume=True)


def test_a_gpu_that_is_not_there_leaves_nothing_behind(tiny_plan: TinyPlan, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="--device cuda:99"):
        train(tiny_plan(performance={"device": "cuda:99"}), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_wrong_plan_leaves_nothing_behind(tiny_plan: TinyPlan, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no_such_model"):
        train(tiny_plan(model={"backbone": "no_such_model"}), tmp_path / "run")
    assert not list(tmp_path.iterdir())
