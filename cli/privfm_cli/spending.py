"""What hospitals' ledgers say, read without changing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from privfm.dp.accounting import epsilon
from privfm.dp.events import total_steps
from privfm.dp.ledger import Ledger
from privfm.dp.peers import check_heads, check_peers
from privfm.dp.statement import ComposedGuarantee, worst_composition
from privfm.errors import InputError, LedgerError, PlanError, VerificationError
from privfm.federation.folder import is_run
from privfm.plan import Plan, stored_plan

__all__ = [
    "DEFAULT_DELTA",
    "CheckedLedger",
    "FoundSpending",
    "HospitalSpending",
    "RunSpending",
    "ledger_files",
    "plan_of",
    "read_spending",
    "run_of",
    "verify_ledgers",
]

DEFAULT_DELTA = 1e-5


@dataclass(frozen=True)
class RunSpending:
    """One run in a hospital's ledger; every round that was charged counts, whatever became of it."""

    run: str
    private: bool
    rounds_charged: int
    rounds_released: int
    rounds_aborted: int
    rounds_unknown: int
    steps: int
    epsilon: float


@dataclass(frozen=True)
class HospitalSpending:
    """Everything that a hospital's ledger has charged, composed.

    Args:
        hospital: who it is of.
        path: the ledger.
        unit: whose presence is hidden.
        delta, epsilon: what all runs cost together.
        epsilon_allowed: by the ledger's lifetime cap or, of one run alone, by its plan; None when neither is known.
        steps: noisy steps charged.
        runs: one by one.
        asked_out: whether somebody asked out of one of them, which refunds nothing.
    """

    hospital: str
    path: str
    unit: str
    delta: float
    epsilon: float
    epsilon_allowed: float | None
    steps: int
    runs: tuple[RunSpending, ...]
    asked_out: bool


@dataclass(frozen=True)
class CheckedLedger:
    """A ledger whose chain of hashes holds.

    Args:
        hospital: who it is of.
        path: the file.
        counter: how many rounds it signed messages for.
        head: hex of the newest entry's hash.
        rounds_matched: finished rounds whose transcript is the one in the run's records; None outside of a run.
    """

    hospital: str
    path: str
    counter: int
    head: str
    rounds_matched: int | None = None


@dataclass(frozen=True)
class FoundSpending:
    """Hospitals' spending, and what a patient seen at as many of them as the run's plan declares pays at most.

    Args:
        warnings: why it may be more, a line each: ledgers that are older than others saw them.
    """

    hospitals: tuple[HospitalSpending, ...]
    composed: ComposedGuarantee | None
    warnings: tuple[str, ...] = ()


def run_of(path: Path) -> tuple[Path, str | None] | None:
    """Return the run's folder that `path` is or, with the hospital's name, that it is a ledger of."""
    if is_run(path):
        return path, None
    root = path.absolute().parent.parent
    inside = path.is_file() and path.absolute().parent.name == "ledgers" and is_run(root)
    return (root, path.stem) if inside else None


def read_spending(path: Path, delta: float | None) -> FoundSpending:
    """Return what each hospital under `path` has spent.

    Raises:
        InputError: there is no ledger.
        LedgerError: one of them is damaged.
    """
    if delta is not None and not 0 < delta < 1:
        raise PlanError(f"--delta {delta:g}: must be above 0 and below 1")
    plan = plan_of(path)
    with ExitStack() as stack:
        ledgers = [stack.enter_context(Ledger.open(file, read_only=True)) for file in ledger_files(path)]
        hospitals = tuple(_spending(ledger, plan, delta) for ledger in ledgers)
        return FoundSpending(hospitals, _composed(ledgers, plan, delta), tuple(_older(ledgers, path)))


def _older(ledgers: Sequence[Ledger], path: Path) -> Iterator[str]:
    """Say of ledgers that they know of less than others saw, and that what is shown is too little."""
    try:
        check_heads(ledgers, run=str(path))
    except VerificationError as error:
        yield f"more was spent than is shown: {error}"


def _composed(ledgers: Sequence[Ledger], plan: Plan | None, asked: float | None) -> ComposedGuarantee | None:
    if plan is None:
        return None
    spent = {ledger.hospital: ledger.events() for ledger in ledgers}
    return worst_composition(spent, plan.data.max_hospitals_per_patient, asked or plan.privacy.delta)


def verify_ledgers(path: Path) -> tuple[CheckedLedger, ...]:
    """Return every ledger under `path` after checking its chain of hashes, and what else there is to hold it against.

    Of a run that is its folder, elsewhere the ledgers beside it.

    Raises:
        VerificationError: the first thing that is wrong.
    """
    files, run = ledger_files(path), run_of(path)
    checked = tuple(_check(file) for file in files)
    if run is None:
        if path.is_dir():
            _check_side_by_side(files)
        return checked
    from privfm.federation.directory import RunDirectory
    from privfm.federation.verifying import verify_run

    root, hospital = run
    matched = verify_run(RunDirectory.existing(root), hospital)
    return tuple(replace(each, rounds_matched=matched.get(each.hospital)) for each in checked)


def _check_side_by_side(files: Sequence[Path]) -> None:
    with ExitStack() as stack:
        check_peers([stack.enter_context(Ledger.open(file, read_only=True)) for file in files])


def ledger_files(path: Path) -> list[Path]:
    """Return the ledgers of a run's hospitals, or of any other folder, or the one at `path`.

    Raises:
        InputError: there is none.
        LedgerError: one of a run's hospitals has none.
    """
    if path.is_file():
        return [path]
    folder = path / "ledgers" if (path / "ledgers").is_dir() else path
    plan = plan_of(path) if run_of(path) else None
    if plan is not None:
        files = [folder / f"{hospital.id}.sqlite" for hospital in plan.hospitals]
        for file in files:
            if not file.is_file():
                raise LedgerError(
                    f"{file}: no such ledger; restore a backup, then privfm budget recover {path} {file.stem}"
                )
        return files
    files = sorted(folder.glob("*.sqlite"))
    if not files:
        raise InputError(f"{path}: no ledger here; give a run's folder or a ledger's .sqlite file")
    return files


def plan_of(path: Path) -> Plan | None:
    """Return the plan of the run whose folder `path` is, or None.

    Raises:
        VerificationError: it is not the one that the run was begun with.
    """
    file = path / "plan.toml"
    if not file.is_file():
        return None
    plan, facts = stored_plan(file), path / "run.json"
    if facts.is_file() and plan.hash().hex() not in facts.read_text(encoding="utf-8", errors="replace"):
        raise VerificationError(f"{file}: not the plan that the run was begun with; restore it")
    return plan


def _spending(ledger: Ledger, plan: Plan | None, asked: float | None) -> HospitalSpending:
    cap, events = ledger.cap, ledger.events()
    delta = asked or (plan.privacy.delta if plan else cap.delta if cap else DEFAULT_DELTA)
    return HospitalSpending(
        hospital=ledger.hospital,
        path=str(ledger.path),
        unit=ledger.unit,
        delta=delta,
        epsilon=epsilon(events, delta),
        epsilon_allowed=_allowed(ledger, plan),
        steps=total_steps(events),
        runs=tuple(_runs(ledger, delta)),
        asked_out=ledger.asked_out,
    )


def _runs(ledger: Ledger, delta: float) -> Iterator[RunSpending]:
    for record in ledger.runs():
        yield RunSpending(
            run=record.declaration.run,
            private=record.declaration.private,
            rounds_charged=record.charged,
            rounds_released=record.released,
            rounds_aborted=record.aborted,
            rounds_unknown=record.unknown + record.recovered,
            steps=total_steps(record.events),
            epsilon=epsilon(record.events, delta),
        )


def _allowed(ledger: Ledger, plan: Plan | None) -> float | None:
    if ledger.cap is not None:
        return ledger.cap.epsilon
    hospitals = plan.hospitals if plan and len(ledger.runs()) == 1 else ()
    return next((plan.epsilon(each) for each in hospitals if plan and each.id == ledger.hospital), None)


def _check(file: Path) -> CheckedLedger:
    with Ledger.open(file, read_only=True) as ledger:
        ledger.verify()
        return CheckedLedger(ledger.hospital, str(file), ledger.counter, ledger.head().hex())
