"""A federation of one's own: keys, roster, ledgers and hospitals laid out in a run's folder and opened again."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from privfm.dp.coins import Coins, SystemCoins
from privfm.dp.ledger import Ledger
from privfm.errors import RunError
from privfm.federation.cohort import Cohort
from privfm.federation.device import pick_device, units_at_a_time
from privfm.federation.directory import RunDirectory
from privfm.federation.hospital import Hospital, Membership
from privfm.federation.network import Learner
from privfm.federation.notebook import Memory, Notebook
from privfm.federation.planning import mechanism_of
from privfm.federation.unit_batches import UnitSource
from privfm.files import write_atomic
from privfm.ids import HospitalId
from privfm.plan import HospitalPlan, Plan
from privfm.secagg import ClientPolicy, Identity, Roster, smallest_threshold

__all__ = ["CoinsOf", "found_federation", "open_hospitals", "system_coins"]

CoinsOf = Callable[[str], Coins]
"""Where each hospital's secret randomness comes from, by its name."""


def system_coins(hospital: str) -> Coins:
    """Return coins that nobody can replay."""
    return SystemCoins()


def found_federation(directory: RunDirectory, plan: Plan, run: bytes, *, private: bool) -> None:
    """Draw every hospital's keys, write the roster, and open a ledger for each."""
    keys = {}
    for hospital in plan.hospitals:
        identity = Identity.generate(hospital.id, os.urandom(32))
        own = directory.own(hospital.id)
        own.mkdir(mode=0o700)
        write_atomic(own / "identity.pem", identity.to_pem(None, os.urandom(16)), mode=0o600)
        Notebook(own).remember(Memory())
        keys[hospital.id] = identity.public
        with Ledger.create(directory.ledger(hospital.id), hospital.id, unit=plan.privacy.unit) as ledger:
            _open_run(ledger, plan, hospital, run, private=private)
    write_atomic(directory.root / "roster.json", Roster.first(f"privfm {run.hex()}", keys).to_json())


def _open_run(ledger: Ledger, plan: Plan, hospital: HospitalPlan, run: bytes, *, private: bool) -> None:
    ledger.open_run(
        run.hex(),
        plan.hash(),
        [mechanism_of(plan, hospital).event(plan.steps_per_round)],
        rounds=plan.federation.rounds,
        retry_rounds=plan.federation.retry_rounds,
        private=private,
    )


@contextmanager
def open_hospitals(
    directory: RunDirectory, plan: Plan, run: bytes, cohort: Cohort, start: Learner, coins_of: CoinsOf
) -> Iterator[Mapping[HospitalId, Hospital]]:
    """Open every hospital of a run from its own files, and close their ledgers when the block ends.

    Raises:
        LedgerError: a ledger is missing, damaged, in use or of another plan.
    """
    roster = Roster.from_json(_read(directory.root / "roster.json"))
    device = pick_device(plan.performance.device)
    micro_batch = units_at_a_time(plan, start, device)
    with ExitStack() as stack:
        hospitals = {}
        for hospital in plan.hospitals:
            name, own = HospitalId(hospital.id), directory.own(hospital.id)
            ledger = stack.enter_context(Ledger.open(directory.ledger(name), name))
            coins = coins_of(name)
            _open_run(ledger, plan, hospital, run, private=coins.private)
            identity = Identity.from_pem(_read(own / "identity.pem"), None)
            policy = ClientPolicy(plan.secagg.max_corrupt, smallest_threshold(len(plan.hospitals)))
            hospitals[name] = Hospital(
                plan=plan,
                name=name,
                units=_unit_source(plan, cohort, name, micro_batch, device),
                membership=Membership(run, identity, roster, policy),
                ledger=ledger,
                learner=start._replace(network=copy.deepcopy(start.network).to(device)),
                coins=coins,
                notebook=Notebook(own),
            )
        yield hospitals


def _unit_source(plan: Plan, cohort: Cohort, name: HospitalId, micro_batch: int, device: torch.device) -> UnitSource:
    return UnitSource(
        cohort.images[name],
        images_per_unit=plan.privacy.images_per_unit,
        views=plan.privacy.views,
        micro_batch=micro_batch,
        device=device,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); the run's folder is damaged") from None
