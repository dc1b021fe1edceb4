"""A federation of one's own: keys, roster, ledgers and hospitals laid out in a run's folder and opened again."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from privfm.dp.coins import Coins, SystemCoins
from privfm.dp.ledger import Ledger
from privfm.errors import RunError
from privfm.federation.cohort import Cohort
from privfm.federation.device import micro_batch_of, pick_device, units_at_a_time
from privfm.federation.directory import RunDirectory
from privfm.federation.forgotten import FILE, read_forgotten
from privfm.federation.hospital import Hospital, Membership
from privfm.federation.ledgers import check_goes_on, declaration_for, founding_ledgers, put_on_record
from privfm.federation.network import Learner
from privfm.federation.notebook import Memory, Notebook
from privfm.federation.unit_batches import Units, UnitSource
from privfm.files import write_atomic
from privfm.ids import HospitalId
from privfm.plan import HospitalPlan, Plan
from privfm.secagg import ClientPolicy, Identity, Roster, smallest_threshold

__all__ = ["CoinsOf", "UnitsOf", "found_federation", "open_hospitals", "system_coins", "units_from"]

CoinsOf = Callable[[str], Coins]
"""Where each hospital's secret randomness comes from, by its name."""

UnitsOf = Callable[[HospitalPlan], Units]
"""What each hospital trains on."""


def system_coins(hospital: str) -> Coins:
    """Return coins that nobody can replay."""
    return SystemCoins()


def found_federation(directory: RunDirectory, plan: Plan, run: bytes, *, private: bool) -> None:
    """Draw every hospital's keys, write the roster, and open or make a ledger for each.

    In a ledger that other runs use the run is put on record later, when its folder is in place: a run that is on record
    has a folder.

    Raises:
        BudgetExceeded: a lifetime cap has no room for the run; nothing was put on record.
        LedgerError: a ledger is damaged, in use or of another unit, or it is gone or older than others saw it.
    """
    keys = {}
    with founding_ledgers(directory, plan, run.hex(), private=private) as ledgers:
        for hospital in plan.hospitals:
            identity = Identity.generate(hospital.id, os.urandom(32))
            own, ledger = directory.own(hospital.id), ledgers[hospital.id]
            own.mkdir(mode=0o700)
            write_atomic(own / "identity.pem", identity.to_pem(None, os.urandom(16)), mode=0o600)
            Notebook(own).remember(Memory(counter=ledger.counter))
            keys[hospital.id] = identity.public
            if not directory.shares_ledgers:
                put_on_record(ledger, declaration_for(plan, hospital, run.hex(), private=private))
    write_atomic(directory.root / "roster.json", Roster.first(f"privfm {run.hex()}", keys).to_json())


@contextmanager
def open_hospitals(
    directory: RunDirectory, plan: Plan, run: bytes, units_of: UnitsOf, start: Learner, coins_of: CoinsOf
) -> Iterator[Mapping[HospitalId, Hospital]]:
    """Open every hospital of a run from its own files, and close their ledgers when the block ends.

    Raises:
        LedgerError: a ledger is missing, damaged, in use, of another plan, or another run has used it since.
    """
    roster = Roster.from_json(_read(directory.root / "roster.json"))
    device = pick_device(plan.performance.device)
    with ExitStack() as stack:
        hospitals = {}
        for hospital in plan.hospitals:
            name, own = HospitalId(hospital.id), directory.own(hospital.id)
            ledger = stack.enter_context(Ledger.open(directory.ledger(name), name))
            coins = coins_of(name)
            private = coins.private and plan.privacy.dp
            put_on_record(ledger, declaration_for(plan, hospital, run.hex(), private=private))
            _check_forgotten(ledger, run, directory)
            check_goes_on(ledger, Notebook(own).memory())
            identity = Identity.from_pem(_read(own / "identity.pem"), None)
            policy = ClientPolicy(plan.secagg.max_corrupt, smallest_threshold(len(plan.hospitals)))
            hospitals[name] = Hospital(
                plan=plan,
                name=name,
                units=units_of(hospital),
                membership=Membership(run, identity, roster, policy),
                ledger=ledger,
                learner=start._replace(network=copy.deepcopy(start.network).to(device)),
                coins=coins,
                notebook=Notebook(own),
            )
        yield hospitals


def _check_forgotten(ledger: Ledger, run: bytes, directory: RunDirectory) -> None:
    """Raise RunError when fewer are known to have asked out of the run than its ledger says."""
    name = HospitalId(ledger.hospital)
    asked = sum(each.patients_out for each in ledger.runs() if each.declaration.run == run.hex())
    if len(read_forgotten(directory).patients.get(name, ())) < asked:
        raise RunError(f"{directory.own(name) / FILE}: lacks somebody who asked out, by {ledger.path}; restore it")


def units_from(cohort: Cohort, plan: Plan, start: Learner) -> UnitsOf:
    """Return the units of a cohort's hospitals, as many at a time as fit where the plan computes them."""
    device = pick_device(plan.performance.device)
    most = units_at_a_time(plan, start, device)

    def units_of(hospital: HospitalPlan) -> UnitSource:
        return UnitSource(
            cohort.images[HospitalId(hospital.id)],
            images_per_unit=plan.privacy.images_per_unit,
            views=plan.privacy.views,
            micro_batch=micro_batch_of(plan, hospital, most),
            device=device,
        )

    return units_of


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); the run's folder is damaged") from None
