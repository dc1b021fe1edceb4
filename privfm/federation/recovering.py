"""After a hospital's files came back from a backup: what was lost is charged, and no lost round is repeated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from privfm.dp.account import EPOCH
from privfm.dp.ledger import Ledger
from privfm.errors import InputError
from privfm.federation.directory import RunDirectory
from privfm.federation.notebook import Memory, Notebook

__all__ = ["Recovered", "recover_hospital"]


@dataclass(frozen=True)
class Recovered:
    """What a recovery did.

    Args:
        hospital: whose ledger it is.
        seen: the highest counter that a peer saw of it.
        rounds_charged: to make up for what may have been released and is not on record.
        counter: where its ledger stands now.
    """

    hospital: str
    seen: int
    rounds_charged: int
    counter: int


def recover_hospital(directory: RunDirectory, hospital: str, seen: int | None = None) -> Recovered:
    """Recover a hospital's restored ledger and folder.

    Its memory moves on by as many rounds as were lost, and there to no model: an update that was lost is never computed
    again within the generation in which the others stored theirs, or two sums would differ by it alone. That rests on
    rounds being announced one after the other; whatever is computed is charged in any case.

    Args:
        seen: the highest counter that a peer saw; by default what the ledgers beside it in the run's folder say.

    Raises:
        InputError: the run has no such hospital, or nobody can say what was seen.
        LedgerError: a ledger is damaged or in use.
    """
    names = [each.id for each in directory.plan.hospitals]
    if hospital not in names:
        raise InputError(f"{hospital}: not a hospital of this run; its hospitals are {', '.join(names)}")
    if seen is None:
        seen = max(_seen_by(directory, peer, hospital) for peer in names if peer != hospital)
    notebook = Notebook(directory.own(hospital))
    run = directory.facts().run
    with Ledger.open(directory.ledger(hospital), hospital) as ledger:
        charged, memory = ledger.recover(run, seen), notebook.memory()
        if memory.counter // EPOCH < ledger.counter // EPOCH:  # also when a crash came between the two
            lost = charged or sum(record.recovered for record in ledger.runs() if record.declaration.run == run)
            newest = ledger.newest_round(run) + lost
            over = Memory(newest, 0, 0, bytes(32)) if newest >= memory.round else memory
            notebook.remember(replace(over, counter=ledger.counter))
        return Recovered(hospital, seen, charged, ledger.counter)


def _seen_by(directory: RunDirectory, peer: str, hospital: str) -> int:
    with Ledger.open(directory.ledger(peer), peer, read_only=True) as ledger:
        return ledger.highest_seen(hospital)
