"""A search costs what it said beforehand: all of its runs together, whatever crashes, and no private loss decides."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from privfm.dp.accounting import epsilon
from privfm.dp.events import SampledGaussian
from privfm.dp.filter import RdpFilter
from privfm.dp.ledger import Ledger
from privfm.errors import BudgetExceeded, InputError, PlanError
from privfm.federation.directory import RunDirectory
from privfm.federation.observer import Observer
from privfm.federation.records import PublicLoss, RoundRecord
from privfm.federation.search import Search, Trial, plan_search
from privfm.federation.tuning import SearchResult, TrialResult, run_search
from privfm.federation.verifying import verify_run
from privfm.plan import HospitalPlan, Plan

RATES = {"optimizer.learning_rate": [0.003, 0.01]}
TOTAL = 5.0


@pytest.fixture
def plan(tiny_plan: Callable[..., Plan]) -> Plan:
    return tiny_plan(
        privacy={"images_per_unit": 1, "views": 1, "clip_norm": 1.0, "epsilon": TOTAL},
        federation={"rounds": 2, "local_steps": 1, "retry_rounds": 1},
    )


def test_losses_between_embeddings_choose_nothing(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = tiny_plan(objective={"name": "simclr", "negatives": 4, "width": 8, "hidden": 16})
    with pytest.raises(PlanError, match=r"objective\.name simclr: .* search with mae or simmim"):
        plan_search(plan, RATES, tmp_path)


def declared(ledgers: Path) -> dict[str, list[SampledGaussian]]:
    """Of every ledger, what its runs may charge at most."""
    found = {}
    for path in sorted(ledgers.glob("*.sqlite")):
        with Ledger.open(path, read_only=True) as ledger:
            found[ledger.hospital] = [
                event.repeated(record.declaration.most_rounds)
                for record in ledger.runs()
                for event in record.declaration.per_round
            ]
    return found


def test_all_trials_together_cost_what_is_allowed(plan: Plan, tmp_path: Path) -> None:
    tries: dict[str, list[Any]] = {**RATES, "federation.strategy": ["fedavg", "fedavgm"]}
    search = plan_search(plan, tries, tmp_path / "ledgers")
    assert [trial.values for trial in search.trials] == [
        {"optimizer.learning_rate": rate, "federation.strategy": strategy}
        for rate in (0.003, 0.01)
        for strategy in ("fedavg", "fedavgm")
    ]
    for cost in search.costs:
        spent = epsilon([SampledGaussian(0.5, cost.noise_multiplier, 4 * 3)], plan.privacy.delta)
        assert 0.995 * TOTAL <= spent == cost.epsilon_search <= cost.epsilon_allowed == TOTAL
        assert cost.epsilon_trial == epsilon([SampledGaussian(0.5, cost.noise_multiplier, 3)], plan.privacy.delta)
        assert (cost.epsilon_before, cost.epsilon_after, cost.cap_left) == (0.0, cost.epsilon_search, None)
    for trial in search.trials:
        assert trial.plan.optimizer.learning_rate == trial.values["optimizer.learning_rate"]
        assert trial.plan.federation.strategy == trial.values["federation.strategy"]
        assert trial.plan.privacy.epsilon < TOTAL
        assert trial.plan.evaluation.probe is False
    assert not (tmp_path / "ledgers").exists()


def test_every_run_is_on_the_ledgers_and_in_the_statement(plan: Plan, tmp_path: Path) -> None:
    ledgers, out = tmp_path / "ledgers", tmp_path / "search"
    result = run_search(plan_search(plan, RATES, ledgers), out)
    for events in declared(ledgers).values():
        assert len(events) == 2
        assert 0.995 * TOTAL <= epsilon(events, plan.privacy.delta) <= TOTAL
    losses = [
        json.loads((out / name / "rounds.jsonl").read_text().splitlines()[-1])["public_loss"]
        for name in ("trial-1", "trial-2")
    ]
    assert [each.public_loss.trained for each in result.trials] == pytest.approx(losses)
    assert result.best is result.trials[losses.index(min(losses))]
    other = next(each for each in result.trials if each is not result.best)
    statement = json.loads((out / "privacy.json").read_text())
    assert statement["run"] == RunDirectory(result.best.out).facts().run
    assert RunDirectory(other.out).facts().run in statement["tuning_runs"][0]
    assert json.loads((out / "result.json").read_text())["best"] == result.best.name
    for trial in result.trials:
        assert set(verify_run(RunDirectory(trial.out)).values()) == {2}


class Stop(Observer):
    def round_finished(self, record: RoundRecord) -> None:
        raise KeyboardInterrupt


def test_a_search_that_was_interrupted_pays_for_no_trial_twice(plan: Plan, tmp_path: Path) -> None:
    ledgers, out, begun = tmp_path / "ledgers", tmp_path / "search", []

    def observe(trial: Trial) -> Observer:
        begun.append(trial.name)
        return Stop() if len(begun) == 2 else Observer()

    with pytest.raises(KeyboardInterrupt):
        run_search(plan_search(plan, RATES, ledgers), out, observe)
    result = run_search(None, out, observe)
    assert begun == ["trial-1", "trial-2", "trial-2"]
    assert [each.name for each in result.trials] == ["trial-1", "trial-2"]
    for path in ledgers.glob("*.sqlite"):
        with Ledger.open(path, read_only=True) as ledger:
            assert [record.released for record in ledger.runs()] == [2, 2]
    with pytest.raises(InputError, match="exists already"):
        run_search(plan_search(plan, RATES, ledgers), out)
    with pytest.raises(InputError, match="no search to go on with"):
        run_search(None, tmp_path)


def spent_before(path: Path, event: SampledGaussian) -> None:
    with Ledger.create(path, "hospital-2") as ledger:
        ledger.open_run("earlier", bytes(32), [event], rounds=1, retry_rounds=0)
        ledger.charge("earlier", 1, 0, bytes(32))


def test_under_a_cap_the_whole_search_fits_beside_what_was_spent(plan: Plan, tmp_path: Path) -> None:
    before, path = SampledGaussian(0.5, 1.4, 6), tmp_path / "hospital-2.sqlite"
    spent_before(path, before)
    uncapped = plan_search(plan, RATES, tmp_path).costs[1]
    assert uncapped.epsilon_before == epsilon([before], plan.privacy.delta)
    assert uncapped.epsilon_search < uncapped.epsilon_after < uncapped.epsilon_before + uncapped.epsilon_search
    cap = RdpFilter.for_cap(1.5 * uncapped.epsilon_after, plan.privacy.delta)
    with Ledger.open(path) as ledger:
        ledger.set_cap(cap)
    roomy = plan_search(plan, RATES, tmp_path).costs[1]
    assert roomy.noise_multiplier == uncapped.noise_multiplier
    assert 0 < (roomy.cap_left or 0) < 0.5
    tight = dataclasses.replace(cap, epsilon=uncapped.epsilon_after)
    with Ledger.open(path) as ledger:
        ledger.set_cap(tight)
    capped = plan_search(plan, RATES, tmp_path).costs[1]
    step = SampledGaussian(0.5, capped.noise_multiplier, 1)
    assert tight.admits([before, step.repeated(6)])
    assert not tight.admits([before, step.repeated(7)])
    assert capped.noise_multiplier > uncapped.noise_multiplier
    assert capped.epsilon_search < uncapped.epsilon_search
    run_search(plan_search(plan, RATES, tmp_path), tmp_path / "search")  # and no ledger refuses it
    with Ledger.open(path) as ledger:
        ledger.set_cap(dataclasses.replace(cap, epsilon=uncapped.epsilon_before))
    with pytest.raises(BudgetExceeded, match="leaves no room for 6 steps more, whatever the noise"):
        plan_search(plan, RATES, tmp_path)


@pytest.mark.parametrize(
    ("tries", "says"),
    [
        ({"privacy.sample_rate": [0.1, 0.2]}, "--try privacy.sample_rate: cannot be tried"),
        ({"objective.name": ["mae", "simmim"]}, "--try objective.name: cannot be tried"),
        ({"optimizer.learning_rate": [0.1]}, "one value is no search"),
        ({"optimizer.learning_rate": [0.1, 0.1]}, "twice"),
        ({"optimizer.learning_rate": [0.1, -1.0]}, "optimizer.learning_rate: "),
        ({"optimizer.learning_rate": [n / 1000 for n in range(1, 102)]}, "101 trials"),
    ],
)
def test_what_cannot_be_tried_is_one_line(
    plan: Plan, tmp_path: Path, tries: Mapping[str, Sequence[Any]], says: str
) -> None:
    with pytest.raises(PlanError) as raised:
        plan_search(plan, tries, tmp_path)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_search_looks_at_no_held_out_patient(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"evaluation\.probe"):
        plan_search(tiny_plan(evaluation={"probe": True}), RATES, tmp_path)


def test_noise_that_a_plan_fixes_is_kept_and_paid_for(plan: Plan, tmp_path: Path) -> None:
    def with_noise(noise_multiplier: float) -> Plan:
        hospitals = tuple(
            HospitalPlan(id=f"hospital-{i}", nominal_units=10, noise_multiplier=noise_multiplier) for i in (1, 2, 3)
        )
        return plan.model_copy(update={"hospitals": hospitals})

    search = plan_search(with_noise(9.0), RATES, tmp_path)
    assert {cost.noise_multiplier for cost in search.costs} == {9.0}
    assert all(cost.epsilon_search < TOTAL / 2 for cost in search.costs)
    with pytest.raises(BudgetExceeded, match="2 trials with noise multiplier 1 would spend epsilon"):
        plan_search(with_noise(1.0), RATES, tmp_path)
    spent_before(tmp_path / "hospital-2.sqlite", SampledGaussian(0.5, 1.4, 6))
    with Ledger.open(tmp_path / "hospital-2.sqlite") as ledger:
        ledger.set_cap(RdpFilter.for_cap(6.5, plan.privacy.delta))
    with pytest.raises(BudgetExceeded, match=r"room for \d trials of this kind, not 2; try fewer values"):
        plan_search(with_noise(1.9), RATES, tmp_path)


def test_a_smaller_total_means_more_noise(plan: Plan, tmp_path: Path) -> None:
    few, many = (plan_search(plan, RATES, tmp_path, total).costs[0] for total in (1.0, None))
    assert few.noise_multiplier > many.noise_multiplier
    assert few.epsilon_search <= 1.0


def test_a_loss_that_is_no_number_is_worst(tmp_path: Path) -> None:
    def trial(name: str, loss: float) -> TrialResult:
        return TrialResult(name, {}, tmp_path, PublicLoss(1.0, loss, 1.0), {})

    result = SearchResult(Search(tmp_path, 1e-5, (), ()), (trial("a", math.nan), trial("b", 3.0), trial("c", 2.0)))
    assert result.best.name == "c"
    assert result.to_json()["trials"][0]["public_loss"]["trained"] is None


def test_without_noise_no_search_is_promised_an_epsilon(plan: Plan, tmp_path: Path) -> None:
    """Its table of costs would show noise that its runs do not have."""
    without = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"dp": False})})
    with pytest.raises(PlanError, match=r"privacy\.dp: a search keeps its runs within an epsilon"):
        plan_search(without, RATES, tmp_path / "ledgers", TOTAL)
