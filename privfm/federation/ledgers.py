"""The ledgers of a run's hospitals: a run's own, or lasting ones that many runs use one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from privfm.dp.events import compose
from privfm.dp.ledger import Declaration, Ledger
from privfm.errors import BudgetExceeded, LedgerError
from privfm.federation.directory import RunDirectory
from privfm.federation.notebook import Memory
from privfm.federation.planning import mechanism_of
from privfm.federation.room import fitting_epsilon, room_advice
from privfm.plan import HospitalPlan, Plan

__all__ = ["check_goes_on", "declaration_for", "declaration_of", "founding_ledgers", "put_on_record"]


def declaration_for(plan: Plan, hospital: HospitalPlan, run: str, *, private: bool) -> Declaration:
    """Return what `hospital` declares of a run, which is named by 32 hexadecimal digits."""
    return Declaration(
        run=run,
        plan_hash=plan.hash(),
        per_round=compose([mechanism_of(plan, hospital).event(plan.steps_per_round)]),
        rounds=plan.federation.rounds,
        retry_rounds=plan.federation.retry_rounds,
        private=private,
    )


def declaration_of(ledger: Ledger, run: str) -> Declaration:
    """Return what `ledger` declared of `run`; LedgerError when it knows nothing of it."""
    known = {record.declaration.run: record.declaration for record in ledger.runs()}
    if run not in known:
        raise LedgerError(
            f"{ledger.path}: knows nothing of run {run}; it is another one, or came from a backup older than that run: "
            f"put the right one back, or charge what it lost with: privfm budget recover RUN {ledger.hospital}"
        )
    return known[run]


def put_on_record(ledger: Ledger, declared: Declaration, *, lost: bool = False) -> None:
    """Declare a run; doing it again changes nothing. See `Ledger.open_run` for `lost` and for what is raised."""
    ledger.open_run(
        declared.run,
        declared.plan_hash,
        declared.per_round,
        rounds=declared.rounds,
        retry_rounds=declared.retry_rounds,
        private=declared.private,
        lost=lost,
    )


@contextmanager
def founding_ledgers(directory: RunDirectory, plan: Plan, run: str, *, private: bool) -> Iterator[Mapping[str, Ledger]]:
    """Yield every hospital's ledger, open for a new run: the one that is there, or a new one.

    Everything that can be wrong is found before anything is made.

    Raises:
        BudgetExceeded: a lifetime cap has no room for the run.
        LedgerError: a ledger is damaged, in use or of another unit, or it is gone or older than others saw it.
    """
    with ExitStack() as stack:
        there = {
            each.id: stack.enter_context(Ledger.open(directory.ledger(each.id), each.id))
            for each in plan.hospitals
            if directory.ledger(each.id).exists()
        }
        for hospital in plan.hospitals:
            _check_not_older(directory, hospital.id, there)
        for hospital in plan.hospitals:
            if hospital.id in there:
                _check_unit(there[hospital.id], plan)
                _check_room(there, plan, declaration_for(plan, hospital, run, private=private), hospital)
        yield {
            each.id: there.get(each.id)
            or stack.enter_context(Ledger.create(directory.ledger(each.id), each.id, unit=plan.privacy.unit))
            for each in plan.hospitals
        }


def _check_room(there: Mapping[str, Ledger], plan: Plan, declared: Declaration, hospital: HospitalPlan) -> None:
    """Raise BudgetExceeded with what would fit at every hospital."""
    try:
        there[hospital.id].check_cap(declared, declared.most_rounds)
    except BudgetExceeded as refusal:
        if not declared.private:
            raise
        capped = [each for each in plan.hospitals if each.id in there and there[each.id].cap is not None]
        fitting = [_fitting(there[each.id], plan, each) for each in capped]
        raise BudgetExceeded(f"{refusal}; {room_advice(fitting)}") from None


def _fitting(ledger: Ledger, plan: Plan, hospital: HospitalPlan) -> float | None:
    return None if ledger.cap is None else fitting_epsilon(ledger.cap, plan, hospital, ledger.events())


def _check_unit(ledger: Ledger, plan: Plan) -> None:
    if ledger.unit != plan.privacy.unit:
        raise LedgerError(
            f"{ledger.path}: counts for one {ledger.unit}, and the plan's privacy.unit is {plan.privacy.unit}; give "
            "the run ledgers of its own unit in another folder"
        )


def _check_not_older(directory: RunDirectory, name: str, there: Mapping[str, Ledger]) -> None:
    """Raise LedgerError when peers saw a ledger further on than it is, or with what it lacks.

    In the first round they would refuse the one; of the other they would remember the new history only.
    """
    path, own = directory.ledger(name), there.get(name)
    for peer, ledger in there.items():
        seen, head = (0, b"") if peer == name else ledger.last_seen(name)
        if own is None and seen:
            raise LedgerError(f"{path}: no such ledger, but {peer} saw it at counter {seen}; restore it from a backup")
        if own is not None and own.counter < seen:
            raise LedgerError(
                f"{path}: stands at counter {own.counter}, and {peer} saw {seen}; it came from a backup; charge what "
                f"it lost with: privfm budget recover RUN {name}, RUN being the newest run that it was in"
            )
        if own is not None and own.lacks(seen, head):
            raise LedgerError(
                f"{path}: lacks an entry that {peer} saw at counter {seen}; it was written anew, or went on from a "
                "backup; put the right one back"
            )


def check_goes_on(ledger: Ledger, memory: Memory) -> None:
    """Raise LedgerError when a ledger went on without the run whose `memory` this is, because another run used it.

    A hospital takes the run's memory for older than the ledger then, as after a backup.
    """
    if len(ledger.runs()) > 1 and not ledger.counter <= memory.counter <= ledger.counter + 1:
        raise LedgerError(
            f"{ledger.path}: another run has used this ledger since, or one of the two came from a backup; this run "
            "can no longer go on, start a new one"
        )
