"""A whole run: from a plan to a model, its ledgers and its privacy statement."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from privfm import __version__
from privfm.dp.accounting import epsilon
from privfm.dp.coins import InjectedCoins
from privfm.errors import InputError, PlanError, ProtocolError
from privfm.federation.clip_norm import public_clip_norm, public_loss_bound
from privfm.federation.cohort import DEFAULT_NOMINAL_UNITS, Cohort, gather_cohort
from privfm.federation.control import noise_only
from privfm.federation.coordinator import Coordinator
from privfm.federation.device import pick_device
from privfm.federation.directory import (
    Checkpoint,
    RunDirectory,
    RunFacts,
    check_free,
    finished_rounds,
    new_run,
)
from privfm.federation.engines.local import LocalEngine
from privfm.federation.forgotten import NOBODY, Again, Forgotten, read_forgotten
from privfm.federation.hospital import Hospital
from privfm.federation.initialisation import Start, initialise
from privfm.federation.network import Learner, load_network, save_network, trained, write_trained
from privfm.federation.observer import Observer
from privfm.federation.planning import complete_plan
from privfm.federation.probing import compare_by_probe
from privfm.federation.public import public_images, public_loss
from privfm.federation.records import ProbeComparison, PublicLoss, RunResult
from privfm.federation.simulation import CoinsOf, found_federation, open_hospitals, system_coins, units_from
from privfm.federation.stating import composed_result, hospital_result, make_statement, sums_of
from privfm.files import write_atomic
from privfm.ids import HospitalId
from privfm.models import save_backbone
from privfm.objectives import get_objective
from privfm.plan import Plan
from privfm.secagg import Stage

__all__ = ["train"]


def train(
    plan: Plan,
    out: Path,
    *,
    resume: bool = False,
    ledgers: Path | None = None,
    again: Again | None = None,
    observer: Observer | None = None,
    coins_of: CoinsOf = system_coins,
) -> RunResult:
    """Return the result of a federation of simulated hospitals, run in this process and kept in `out`.

    Args:
        plan: what to train; on resuming, the stored plan.
        out: the run's folder; made here, unless the run is resumed.
        resume: go on from the last finished round.
        ledgers: a folder of hospitals' ledgers, in which a new run goes on from what earlier ones spent; by default
            the run has ledgers of its own. On resuming, the run's folder knows.
        again: the run that is trained again, without those who asked out of it; see `privfm.federation.forgetting`.
        observer: hears of the progress.
        coins_of: each hospital's secret randomness; anything but the default makes the run "not private",
            as does a plan without dp.

    Raises:
        InputError: the plan, the images or `out` will not do; nothing was written.
        BudgetExceeded: a ledger refuses a charge, and the round's gradients were not computed; or its lifetime cap has
            no room for the whole run, and nothing was.
        ProtocolError: a round could not be finished within the plan's retries.
        LedgerError, RunError: the run's folder is damaged.
    """
    observer, began = observer or Observer(), time.monotonic()
    if not plan.privacy.dp:
        observer.warn("NO DIFFERENTIAL PRIVACY: nothing hides a patient in this model; use images of nobody's alone")
    if plan.performance.threads:
        torch.set_num_threads(plan.performance.threads)
    pick_device(plan.performance.device)  # what is wrong with the plan alone is told before anything is read
    get_objective(plan.objective.name, **plan.objective.options)
    if not resume:
        check_free(out)
    forgotten = _forgotten_of(out, plan) if resume else again.forgotten if again else NOBODY
    observer.stage(f"reading {plan.data.source}")
    cohort = gather_cohort(plan, forgotten)
    if resume:
        directory = RunDirectory.existing(out)
        _check_same_plan(directory, plan)
        finished_rounds(directory)  # what is missing or damaged shows before anything more is spent
    else:
        private = coins_of("").private and plan.privacy.dp
        directory = _found(plan, cohort, out, ledgers, again, observer, private=private)
    return _Run(directory, plan if resume else directory.plan, cohort, observer, coins_of).finish(began)


def _forgotten_of(out: Path, plan: Plan) -> Forgotten:
    """Return who asked out of a run that is to go on; InputError when a hospital of its plan did, as a whole."""
    directory = RunDirectory.existing(out)
    forgotten = read_forgotten(directory)
    for hospital in plan.hospitals:
        if hospital.id in forgotten.hospitals:
            raise InputError(
                f"{out}: {hospital.id} asked out, so that the run cannot go on; train it again without: "
                f"privfm forget {out} --hospital {hospital.id} --out NEW"
            )
    return forgotten


def _check_same_plan(directory: RunDirectory, plan: Plan) -> None:
    if directory.plan.hash() != plan.hash():
        raise PlanError(f"--resume: the plan is not the one that {directory.root} was begun with; leave plan flags out")


def _found(
    plan: Plan,
    cohort: Cohort,
    out: Path,
    ledgers: Path | None,
    again: Again | None,
    observer: Observer,
    *,
    private: bool,
) -> RunDirectory:
    """Lay out a new run: everything that can be wrong with a plan is found before anything is kept."""
    complete_plan(plan, cohort.nominal_units, clip_norm=1.0)  # what is wrong with a plan shows before the long work
    start = initialise(plan, observer) if again is None else again.start(plan)
    observer.stage("planning noise")
    clip_norm, loss_bound = public_clip_norm(plan, start.learner), public_loss_bound(plan, start.learner)
    whole = complete_plan(plan, cohort.nominal_units, clip_norm, loss_bound)
    if cohort.assumed:
        observer.warn(
            f"every hospital is taken to have {DEFAULT_NOMINAL_UNITS} patients; declare better with --nominal-units"
        )
    if ledgers is not None:
        _say_which_are_new(whole, ledgers, observer)
    run = os.urandom(16)
    with new_run(out, ledgers) as draft:
        write_atomic(draft.root / "plan.toml", whole.to_toml().encode())
        found_federation(draft, whole, run, private=private)
        if again is not None:
            again.keep(draft, whole)
        save_network(start.learner.network, draft.root / "start.safetensors")
        draft.save_checkpoint(Checkpoint(0, trained(start.learner.network), {}))
        draft.write_json("run.json", _facts(whole, run, start, private=private).model_dump())
    return RunDirectory(out)


def _say_which_are_new(plan: Plan, ledgers: Path, observer: Observer) -> None:
    """Tell of ledgers that are begun: of a mistyped folder all are, and what was spent before is not counted."""
    new = [each.id for each in plan.hospitals if not (ledgers / f"{each.id}.sqlite").exists()]
    if new:
        observer.warn(f"--ledgers {ledgers}: new ledgers are begun there, with nothing spent, for {', '.join(new)}")


def _facts(plan: Plan, run: bytes, start: Start, *, private: bool) -> RunFacts:
    return RunFacts(
        run=run.hex(),
        plan_hash=plan.hash().hex(),
        version=__version__,
        private=private,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        public_data=start.public_data,
        notes=start.notes,
    )


@dataclass(frozen=True)
class _States:
    """Trainable parameters of one network: where the run began, where it ended, and where noise alone would have."""

    start: Float[Tensor, " parameters"]
    trained: Float[Tensor, " parameters"]
    noise_only: Float[Tensor, " parameters"]


@dataclass
class _Run:
    """A run between being laid out and being finished."""

    directory: RunDirectory
    plan: Plan
    cohort: Cohort
    observer: Observer
    coins_of: CoinsOf

    def finish(self, began: float) -> RunResult:
        """Play the rounds that are left, then state, measure and export."""
        facts = self.directory.facts()
        run = bytes.fromhex(facts.run)
        start = load_network(self.directory.root, "start.safetensors")
        initial = trained(start.network)
        units_of = units_from(self.cohort, self.plan, start)
        with open_hospitals(self.directory, self.plan, run, units_of, start, self.coins_of) as hospitals:
            learner = self._play(run, start, hospitals)
            outcome = self.directory.outcome()
            for hospital in hospitals.values():
                hospital.finish(outcome)
            self._state(facts, hospitals)
            accounts = {name: each.ledger for name, each in hospitals.items()}
            rows = tuple(hospital_result(self.plan, name, each, facts.run) for name, each in accounts.items())
            composed = composed_result(self.plan, accounts, facts.run)
        self.observer.stage("measuring against noise alone")
        final = trained(learner.network)
        write_trained(learner.network, initial)
        draws = InjectedCoins(run + b" control")  # of nobody's: a run that is finished twice has one yardstick
        control = noise_only(self.plan, learner, self.observer, draws)
        states = _States(start=initial, trained=final, noise_only=control)
        result = RunResult(
            out=self.directory.root,
            model=self.directory.root / "model.safetensors",
            rounds=self.plan.federation.rounds,
            seconds=time.monotonic() - began,
            private=facts.private,
            hospitals=rows,
            public_loss=self._public_loss(learner, states),
            probe=self._probe(learner, states),
            composed=composed,
        )
        self.directory.write_json("result.json", result.to_json())
        return result

    def _play(self, run: bytes, start: Learner, hospitals: Mapping[HospitalId, Hospital]) -> Learner:
        """Return the network after the last round; its files are written."""
        self.observer.stage("training")

        def spent() -> dict[str, float]:
            return {name: self._epsilon(hospital) for name, hospital in hospitals.items()}

        def heard(stage: Stage, name: str, refusal: ProtocolError | None) -> None:
            if refusal is not None:
                self.observer.warn(f"{name} refuses to answer: {refusal}")
            elif stage is Stage.MASK:
                hospital = hospitals[HospitalId(name)]
                self.observer.hospital_finished(coordinator.finished + 1, name, self._epsilon(hospital))

        roster = next(iter(hospitals.values())).membership.roster
        engine = LocalEngine(hospitals, heard)
        coordinator = Coordinator(self.directory, self.plan, run, roster, start, engine, self.observer, spent)
        learner = coordinator.play()
        save_network(learner.network, self.directory.root / "network.safetensors")
        save_backbone(learner.network.backbone, self.directory.root)
        return learner

    def _epsilon(self, hospital: Hospital) -> float:
        return epsilon(hospital.ledger.events(hospital.membership.run.hex()), self.plan.privacy.delta)

    def _state(self, facts: RunFacts, hospitals: Mapping[HospitalId, Hospital]) -> None:
        self.observer.stage("stating what was spent")
        ledgers = {str(name): hospital.ledger for name, hospital in hospitals.items()}
        statement = make_statement(
            self.plan,
            ledgers,
            run=facts.run,
            private=facts.private,
            public_data=facts.public_data,
            probed=self.cohort.probe_test is not None,
            for_sums=sums_of(self.directory, self.plan, ledgers, facts.run),
        )
        write_atomic(self.directory.root / "privacy.json", statement.to_json().encode())

    def _public_loss(self, learner: Learner, states: _States) -> PublicLoss:
        images, losses = public_images(self.plan), []
        for state in (states.start, states.noise_only, states.trained):
            write_trained(learner.network, state)
            losses.append(public_loss(learner, images))
        return PublicLoss(start=losses[0], noise_only=losses[1], trained=losses[2])

    def _probe(self, learner: Learner, states: _States) -> ProbeComparison | None:
        fit, test = self.cohort.probe_fit, self.cohort.probe_test
        if fit is None or test is None:
            return None
        self.observer.stage("probing held-out patients")
        return compare_by_probe(
            learner, initial=states.start, noise_only=states.noise_only, fit=fit, test=test, observer=self.observer
        )
