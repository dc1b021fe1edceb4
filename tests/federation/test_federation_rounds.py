"""One round of real hospitals: the sum, retries, refusals and drop-outs."""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import numpy as np
import pytest
import torch

from privfm.dp.coins import InjectedCoins
from privfm.errors import BudgetExceeded, DataError, LedgerError, ProtocolError
from privfm.federation.announcement import Announcement, model_hash
from privfm.federation.cohort import gather_cohort
from privfm.federation.directory import RunDirectory, new_run
from privfm.federation.engines.local import LocalEngine
from privfm.federation.hospital import Hospital
from privfm.federation.network import Learner, build_learner, network_hash, trained, weights_at, write_trained
from privfm.federation.notebook import Notebook
from privfm.federation.planning import complete_plan, round_spec
from privfm.federation.recovering import recover_hospital
from privfm.federation.rounds import SecureSum, play_round
from privfm.federation.simulation import found_federation, open_hospitals, units_from
from privfm.ids import HospitalId
from privfm.plan import EvaluationPlan, Plan
from privfm.secagg import Client, ClientPolicy, Identity, LedgerMark, Roster, Stage, dequantise

RUN = b"r" * 16
FACTS = {"run": RUN.hex(), "version": "0", "private": False, "started": "", "public_data": [], "notes": []}


def coins_of(name: str) -> InjectedCoins:
    return InjectedCoins(name.encode())


class Federation:
    """Hospitals of one plan, a coordinator that can announce anything, and a switch to lose messages."""

    def __init__(self, plan: Plan, root: Path) -> None:
        cohort = gather_cohort(plan)
        self.plan = complete_plan(plan, cohort.nominal_units, 1.0)
        start = build_learner(self.plan)
        with new_run(root) as draft:
            found_federation(draft, self.plan, RUN, private=False)
            (draft.root / "plan.toml").write_text(self.plan.to_toml())
            draft.write_json("run.json", FACTS | {"plan_hash": self.plan.hash().hex()})
        self.root, self.cohort, self.learner = root, cohort, start
        self.hospitals: Mapping[HospitalId, Hospital] = {}
        self.start, self.model = network_hash(start.network), trained(start.network).numpy()
        self.lost: set[tuple[str, Stage]] = set()
        self.garbled: set[Stage] = set()
        self.refusals: list[str] = []
        self.attempts = 0

    @contextmanager
    def opened(self) -> Iterator[Federation]:
        """As after a start of every hospital's process."""
        directory = RunDirectory(self.root)
        units_of = units_from(self.cohort, self.plan, self.learner)
        with open_hospitals(directory, self.plan, RUN, units_of, self.learner, coins_of) as self.hospitals:
            yield self

    def exchange(self, stage: Stage, outgoing: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        def heard(stage: Stage, name: str, refusal: ProtocolError | None) -> None:
            if refusal:
                self.refusals.append(str(refusal))

        if stage in self.garbled:
            outgoing = {name: mail[:-1] + bytes([mail[-1] ^ 1]) for name, mail in outgoing.items()}
        for name, answer in LocalEngine(self.hospitals, heard).exchange(stage, outgoing):
            if (name, stage) not in self.lost:
                yield name, answer

    def play(self, number: int = 1, generation: int = 0) -> SecureSum:
        announcement = self.announce(number, generation)
        roster = next(iter(self.hospitals.values())).membership.roster
        bound = model_hash(self.start, announcement)
        self.spec = round_spec(self.plan, RUN, roster, announcement, bound, len(self.model))
        return play_round(self.spec, announcement, self, b"e" * 32)

    def announce(self, number: int, generation: int = 0) -> Announcement:
        self.attempts += 1
        return Announcement(number, self.attempts - 1, generation, tuple(sorted(self.hospitals)), self.model)

    def stored(self, name: str, number: int = 1) -> np.ndarray:
        stored = self.hospitals[HospitalId(name)].ledger.load_update(RUN.hex(), number)
        assert stored is not None
        return np.frombuffer(stored, dtype="<i4")

    def charged(self) -> list[int]:
        return [hospital.ledger.spent(RUN.hex()) for hospital in self.hospitals.values()]


@pytest.fixture
def federation(tiny_plan: Callable[..., Plan], tmp_path: Path) -> Iterator[Federation]:
    with Federation(five(tiny_plan), tmp_path / "run").opened() as federation:
        yield federation


def five(tiny_plan: Callable[..., Plan]) -> Plan:
    return tiny_plan(
        data={"hospitals": 5, "patients": 40},
        federation={"rounds": 4, "local_steps": 2, "retry_rounds": 2},
        evaluation={"probe": False},
    )


def test_a_coordinator_that_garbles_deliveries_costs_no_budget(federation: Federation) -> None:
    federation.garbled = {Stage.MASK}
    with pytest.raises(ProtocolError, match="mask: 0 of 5"):
        federation.play()
    assert len(federation.refusals) == 5
    assert federation.charged() == [0] * 5
    federation.garbled = set()
    federation.play()
    assert all(federation.charged())


def test_the_sum_is_the_plain_integer_sum_of_what_hospitals_stored(federation: Federation) -> None:
    secure = federation.play()
    plain = sum(federation.stored(name).astype(np.int64) for name in secure.survivors)
    np.testing.assert_array_equal(secure.total, dequantise(plain.astype(np.int32), federation.spec.vectors[0]))
    assert secure.survivors == federation.spec.cohort
    assert np.abs(plain).max() > 0


@pytest.mark.parametrize("stage", [Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.AGREE, Stage.UNMASK])
def test_one_of_five_may_drop_out_at_any_stage(federation: Federation, stage: Stage) -> None:
    federation.lost = {("hospital-2", stage)}
    secure = federation.play()
    gone = stage in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK)
    assert ("hospital-2" not in secure.survivors) == gone
    plain = sum(federation.stored(name).astype(np.int64) for name in secure.survivors)
    np.testing.assert_array_equal(secure.total, dequantise(plain.astype(np.int32), federation.spec.vectors[0]))


def test_two_of_five_may_not(federation: Federation) -> None:
    federation.lost = {("hospital-2", Stage.MASK), ("hospital-3", Stage.MASK)}
    with pytest.raises(ProtocolError):
        federation.play()


def test_a_retry_masks_the_stored_update_again_and_costs_nothing(federation: Federation) -> None:
    first = federation.play()
    charged, stored = federation.charged(), federation.stored("hospital-1")
    again = federation.play()
    np.testing.assert_array_equal(first.total, again.total)
    np.testing.assert_array_equal(stored, federation.stored("hospital-1"))
    assert federation.charged() == charged


def test_a_retry_with_other_survivors_is_refused(federation: Federation) -> None:
    federation.play()
    federation.lost = {("hospital-2", Stage.MASK)}
    with pytest.raises(ProtocolError):
        federation.play()
    assert federation.refusals


def test_a_new_generation_computes_anew_is_charged_and_may_have_other_survivors(federation: Federation) -> None:
    federation.play()
    stored, charged = federation.stored("hospital-1"), federation.charged()
    federation.lost = {("hospital-2", Stage.MASK)}
    secure = federation.play(generation=1)
    assert "hospital-2" not in secure.survivors
    assert not np.array_equal(stored, federation.stored("hospital-1"))
    assert federation.charged() == [steps + 2 for steps in charged]


def test_hospitals_told_different_generations_get_nowhere(federation: Federation) -> None:
    federation.play()
    whole = federation.exchange

    def two_faced(stage: Stage, outgoing: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        if stage is Stage.ADVERTISE:
            names = tuple(sorted(federation.hospitals))
            other = Announcement(1, federation.attempts - 1, 1, names, federation.model).encode()
            outgoing = dict(outgoing) | {"hospital-1": other}
        yield from whole(stage, outgoing)

    federation.exchange = two_faced  # type: ignore[method-assign]
    with pytest.raises(ProtocolError):
        federation.play()


def test_an_older_round_is_refused(federation: Federation) -> None:
    federation.play(number=2)
    with pytest.raises(ProtocolError):
        federation.play(number=1)


def test_the_reserve_ends_before_anything_is_computed(federation: Federation) -> None:
    for generation in range(6):  # 4 rounds and 2 retries were declared
        federation.play(generation=generation)
    with pytest.raises(BudgetExceeded):
        federation.play(generation=6)
    assert federation.charged() == [12] * 5


def test_losing_hospitals_before_they_mask_costs_only_those_that_computed(federation: Federation) -> None:
    federation.lost = {("hospital-2", Stage.ADVERTISE)}
    federation.play()
    assert federation.charged() == [2, 0, 2, 2, 2]


def test_a_generation_has_one_model(federation: Federation) -> None:
    """Else hospitals that did not answer before would compute on a model of the coordinator's choice, alone."""
    federation.lost = {("hospital-1", Stage.SHARE)}
    federation.play()
    federation.lost, federation.model = set(), federation.model + 1
    with pytest.raises(ProtocolError):
        federation.play()
    assert any("two models" in refusal for refusal in federation.refusals)
    assert federation.charged() == [0, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "lie",
    [
        {"generation": 1, "cohort": ("hospital-1", "nobody")},
        {"generation": 2**40},
        {"round": 5, "generation": 1},
        {"round": 2**32, "generation": 1},
        {"generation": 1, "attempt": 0},
        {"round": 0, "generation": 1},
    ],
)
def test_a_lie_to_one_hospital_does_not_make_it_compute_again(federation: Federation, lie: dict[str, Any]) -> None:
    first = federation.play()
    charged, names = federation.charged(), tuple(sorted(federation.hospitals))
    truth = {"round": 1, "attempt": federation.attempts, "generation": 0, "cohort": names}
    message = Announcement(**{**truth, **lie}, model=federation.model).encode()
    with pytest.raises(ProtocolError):
        federation.hospitals[HospitalId("hospital-1")].answer(Stage.ADVERTISE, message)
    federation.attempts += 1
    np.testing.assert_array_equal(federation.play().total, first.total)
    assert federation.charged() == charged


def test_a_crash_after_a_new_generation_was_remembered_masks_nothing_old(federation: Federation) -> None:
    federation.play()
    old = federation.stored("hospital-1")
    hospital = federation.hospitals[HospitalId("hospital-1")]
    names = tuple(sorted(federation.hospitals))
    announced = Announcement(1, federation.attempts, 1, names, federation.model)
    hospital.answer(Stage.ADVERTISE, announced.encode())  # and then it crashes
    federation.attempts += 1
    federation.play(generation=1)
    assert not np.array_equal(federation.stored("hospital-1"), old)


def test_a_restored_folder_is_noticed(federation: Federation) -> None:
    hospital = federation.hospitals[HospitalId("hospital-1")]
    backup = hospital.notebook.memory()
    federation.play()
    hospital.notebook.remember(backup)
    with pytest.raises(LedgerError, match="restored"):
        federation.play(number=2)


def test_why_a_hospital_cannot_compute_stays_with_it(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = federation.hospitals[HospitalId("hospital-3")]

    def broken(*arguments: object) -> None:
        raise DataError("north/patient-7/3.png: cannot be read")

    monkeypatch.setattr(hospital.units, "batches", broken)
    secure = federation.play()
    assert "hospital-3" not in secure.survivors
    assert not [refusal for refusal in federation.refusals if "patient-7" in refusal]


def test_a_restored_hospital_is_refused_until_what_it_lost_is_charged(
    tiny_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    federation, directory = Federation(five(tiny_plan), tmp_path / "run"), RunDirectory(tmp_path / "run")
    name = sorted(hospital.id for hospital in federation.plan.hospitals)[0]
    ledger, own = directory.ledger(name), directory.own(name)
    with federation.opened():
        federation.play(1)
    backup.mkdir()
    copyfile(ledger, backup / "ledger")
    copytree(own, backup / "own")
    with federation.opened():
        federation.play(2)
        before = federation.hospitals[HospitalId(name)].ledger.spent(RUN.hex())
    copyfile(backup / "ledger", ledger)
    copytree(backup / "own", own, dirs_exist_ok=True)
    with federation.opened():
        for _ in range(3):  # not even when its counter has caught up with what its peers saw
            federation.refusals.clear()
            with pytest.raises(ProtocolError):
                federation.play(3)
            assert sum(f"ledgers went back: {name}" in refusal for refusal in federation.refusals) == 4
    recovered = recover_hospital(directory, name)
    assert recovered.rounds_charged == 1
    assert recover_hospital(directory, name).rounds_charged == 0
    with federation.opened():
        with pytest.raises(ProtocolError):  # the lost round, for which the others still have their updates
            federation.hospitals[HospitalId(name)].answer(Stage.ADVERTISE, federation.announce(2).encode())
        assert name in federation.play(3).survivors
        assert federation.hospitals[HospitalId(name)].ledger.spent(RUN.hex()) > before


def test_a_recovery_cut_short_is_finished_by_the_next(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    federation.play(1)
    name = sorted(federation.hospitals)[0]
    federation.hospitals[name].ledger.recover(RUN.hex(), 9)  # and no more: its memory knows nothing of it
    with pytest.raises(LedgerError, match="do not belong together"):
        federation.hospitals[name].answer(Stage.ADVERTISE, federation.announce(4).encode())
    federation.hospitals[name].ledger.shut()
    assert recover_hospital(RunDirectory(federation.root), name, 9).rounds_charged == 0
    assert Notebook(RunDirectory(federation.root).own(name)).memory().round > 1


def test_a_ledger_restored_to_the_middle_of_a_round_is_refused(
    tiny_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would mask another vector for a round that was released, and the two sums would differ by its own."""
    federation, directory = Federation(five(tiny_plan), tmp_path / "run"), RunDirectory(tmp_path / "run")
    name = "hospital-1"
    backup, exchange = tmp_path / "backup", federation.exchange

    def nightly(stage: Stage, outgoing: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        if stage is Stage.MASK:  # after advertising, before masking
            backup.mkdir()
            source = f"file:{directory.ledger(name)}?mode=ro"
            with (
                closing(sqlite3.connect(source, uri=True)) as live,
                closing(sqlite3.connect(backup / "ledger")) as copy,
            ):
                live.backup(copy)
            copytree(directory.own(name), backup / "own")
        return exchange(stage, outgoing)

    monkeypatch.setattr(federation, "exchange", nightly)
    with federation.opened():
        first = federation.play(1)
    monkeypatch.undo()
    copyfile(backup / "ledger", directory.ledger(name))
    copytree(backup / "own", directory.own(name), dirs_exist_ok=True)
    with federation.opened():
        with pytest.raises(ProtocolError):
            federation.play(1)
        assert sum(f"ledgers went back: {name}" in refusal for refusal in federation.refusals) == 4
    assert recover_hospital(directory, name).rounds_charged == 1
    with federation.opened():
        federation.lost = {(name, Stage.ADVERTISE)}  # for this round its stored vector is gone
        with pytest.raises(ProtocolError):  # and its peers agreed to a sum with it
            federation.play(1)
        federation.lost = set()
        assert federation.play(2).survivors == first.survivors


def test_a_counter_of_one_s_own_choice_stops_nobody_else(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    advertise, counters = Client.advertise, [0, 2**63 - 1, 5]

    def lying(self: Client, mark: LedgerMark, **given: Any) -> bytes:
        liar = federation.hospitals[HospitalId("hospital-1")]._current
        mine = liar is not None and self is liar.client
        return advertise(self, LedgerMark(counters.pop(0), b"\7" * 32) if mine else mark, **given)

    monkeypatch.setattr(Client, "advertise", lying)
    assert "hospital-1" in federation.play(1).survivors
    assert "hospital-1" in federation.play(1).survivors
    with pytest.raises(ProtocolError):
        federation.play(1)  # it cannot go further; its peers can
    monkeypatch.undo()
    federation.lost = {("hospital-1", Stage.ADVERTISE)}
    assert len(federation.play(2).survivors) == 4


def test_only_the_plan_s_hospitals_are_summed(federation: Federation) -> None:
    """With more to invite than the threshold was set for, two survivor sets could have no honest signer in common."""
    hospital = federation.hospitals[HospitalId("hospital-1")]
    keys = hospital.membership.roster.keys
    larger = Roster.first("larger", {**keys, "hospital-6": Identity.generate("hospital-6", b"6" * 32).public})
    hospital.membership = replace(hospital.membership, roster=larger)
    cohort = ("hospital-1", "hospital-2", "hospital-3", "hospital-4", "hospital-6")
    announced = Announcement(1, 0, 0, cohort, federation.model)
    with pytest.raises(ProtocolError, match="hospital-6 not in the plan"):
        hospital.answer(Stage.ADVERTISE, announced.encode())


@pytest.mark.parametrize(("policy", "invited"), [(ClientPolicy(1, 5), 4), (ClientPolicy(1, 6), 5)])
def test_a_policy_is_asked_before_anything_is_remembered(
    federation: Federation, policy: ClientPolicy, invited: int
) -> None:
    federation.play(1)
    hospital = federation.hospitals[HospitalId("hospital-1")]
    hospital.membership = replace(hospital.membership, policy=policy)
    before = hospital.notebook.memory(), hospital.ledger.counter, hospital.ledger.pending(RUN.hex(), 1)
    cohort = tuple(sorted(federation.hospitals))[:invited]
    with pytest.raises(ProtocolError, match="refused: "):
        hospital.answer(Stage.ADVERTISE, Announcement(2, 9, 0, cohort, federation.model).encode())
    assert before == (hospital.notebook.memory(), hospital.ledger.counter, hospital.ledger.pending(RUN.hex(), 1))


def test_a_policy_is_asked_about_all_who_may_be_invited(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """A threshold that withstands three among five does not among seven, and another attempt may invite the rest."""
    plan = tiny_plan(data={"hospitals": 7, "patients": 60}, evaluation={"probe": False})
    with Federation(plan, tmp_path / "run").opened() as federation:
        hospital = federation.hospitals[HospitalId("hospital-1")]
        hospital.membership = replace(hospital.membership, policy=ClientPolicy(3, 2))
        cohort = tuple(sorted(federation.hospitals))[:5]
        with pytest.raises(ProtocolError, match="threshold 5 of 7 does not withstand max_corrupt=3"):
            hospital.answer(Stage.ADVERTISE, Announcement(1, 0, 0, cohort, federation.model).encode())


def test_a_loss_is_summed_beside_the_update_and_kept_for_a_retry(
    tiny_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = five(tiny_plan).model_copy(update={"evaluation": EvaluationPlan(local_loss=True, probe=False)})
    with Federation(plan, tmp_path / "run").opened() as federation:
        first = federation.play()
        levels = sum(int(federation.stored(name)[-1]) for name in federation.hospitals)
        spec = federation.spec.vectors[1]
        assert first.loss == pytest.approx(levels * spec.step, rel=1e-5)
        assert federation.charged() == [3] * 5  # two steps that train, and one for the loss
        again = federation.play()
        assert again.loss == first.loss
        np.testing.assert_array_equal(again.total, first.total)
        assert federation.charged() == [3] * 5


def imprinted(learner: Learner) -> np.ndarray:
    """A model whose patches all measure brightness, each against a threshold of its own."""
    network = copy.deepcopy(learner.network)
    weight = next(value for name, value in network.named_parameters() if name.endswith(".weight") and value.dim() > 1)
    with torch.no_grad():
        weight.copy_(torch.linspace(1, 2, len(weight)).reshape(-1, *(1,) * (weight.dim() - 1)).expand_as(weight))
    return trained(network).numpy()


def test_hospitals_note_a_model_that_lays_images_open(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = tiny_plan(
        data={"hospitals": 5, "patients": 40},
        model={"trainable": "all"},
        federation={"rounds": 4, "local_steps": 2, "retry_rounds": 2},
        evaluation={"probe": False},
    )
    with Federation(plan, tmp_path / "run").opened() as federation:
        notebooks = [hospital.notebook for hospital in federation.hospitals.values()]
        federation.play(1)
        assert [list(notebook.imprints()) for notebook in notebooks] == [[]] * 5
        federation.model = imprinted(federation.learner)
        federation.play(2)
        for notebook in notebooks:
            ((number, lines),) = notebook.imprints()
            assert number == 2
            assert "rows are multiples of others" in lines[0]
    notes = tmp_path / "run" / "hospitals" / next(iter(federation.hospitals)) / "local.jsonl"
    with notes.open("a") as file:
        file.write('{"round": 3, "impr')
    assert len(list(Notebook(notes.parent).imprints())) == 1


def test_examining_a_model_leaves_the_network_alone(tiny_plan: Callable[..., Plan]) -> None:
    learner = build_learner(complete_plan(five(tiny_plan), {HospitalId(name): 9 for name in "abc"}, 1.0))
    before, changed = trained(learner.network), torch.randn(len(trained(learner.network)))
    weights = weights_at(learner.network, changed)
    assert torch.equal(trained(learner.network), before)
    write_trained(learner.network, changed)
    assert all(torch.equal(value, weights[name]) for name, value in learner.network.named_parameters())
