"""After a hospital's files came back from a backup: what was lost is charged, and no lost round is repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from privfm.dp.account import EPOCH
from privfm.dp.ledger import Ledger
from privfm.errors import InputError
from privfm.federation.directory import RunDirectory, begun_plan
from privfm.federation.ledgers import declaration_for, put_on_record
from privfm.federation.notebook import Memory, Notebook
from privfm.ids import HospitalId

__all__ = ["Recovered", "recover_hospital"]


@dataclass(frozen=True)
class Recovered:
    """What a recovery did.

    Args:
        hospital: whose ledger it is.
        seen: the highest counter that a peer saw of it.
        rounds_charged: to make up for what may have been released and is not on record.
        runs: the same by run.
        counter: where its ledger stands now.
    """

    hospital: str
    seen: int
    rounds_charged: int
    runs: Mapping[str, int]
    counter: int


def recover_hospital(
    directory: RunDirectory, hospital: str, seen: int | None = None, also: Sequence[RunDirectory] = ()
) -> Recovered:
    """Recover a hospital's restored ledger, and its folder in the run that is to go on.

    Nobody knows which run a lost round belonged to, so every run in the ledger that may have gone on is charged for all
    of them, in full. A run that began after the backup is not in it, and is put on record first.

    The hospital's memory moves on by as many rounds as were lost, and there to no model: an update that was lost is
    never computed again within the generation in which the others stored theirs, or two sums would differ by it alone.
    That rests on rounds being announced one after the other; whatever is computed is charged in any case.

    Args:
        seen: the highest counter that a peer saw; by default what the ledgers beside it say.
        also: other runs that began after the backup.

    Raises:
        InputError: the run has no such hospital, or the ledgers beside it know of a run that is neither on record nor
            named.
        LedgerError: a ledger is damaged or in use.
    """
    names = [each.id for each in directory.plan.hospitals]
    if hospital not in names:
        raise InputError(f"{hospital}: not a hospital of this run; its hospitals are {', '.join(names)}")
    peers = [name for name in names if name != hospital]
    if seen is None:
        seen = max(_seen_by(directory, peer, hospital) for peer in peers)
    notebook = Notebook(directory.own(hospital))
    run = directory.facts().run
    with Ledger.open(directory.ledger(hospital), hospital) as ledger:
        if ledger.lost_rounds(seen):
            _put_back(ledger, (directory, *also), peers)
        charged, memory = ledger.recover(run, seen), notebook.memory()
        if memory.counter // EPOCH < ledger.counter // EPOCH:  # also when a crash came between the two
            lost = sum(record.recovered for record in ledger.runs() if record.declaration.run == run)
            newest = ledger.newest_round(run) + (charged.get(run) or lost)
            over = Memory(newest, 0, 0, bytes(32)) if newest >= memory.round else memory
            notebook.remember(replace(over, counter=ledger.counter))
        return Recovered(hospital, seen, sum(charged.values()), charged, ledger.counter)


def _seen_by(directory: RunDirectory, peer: str, hospital: str) -> int:
    with Ledger.open(directory.ledger(peer), peer, read_only=True) as ledger:
        return ledger.highest_seen(hospital)


def _put_back(ledger: Ledger, directories: Sequence[RunDirectory], peers: Sequence[str]) -> None:
    """Put runs on record that the backup does not know; InputError when there is one that nobody named."""
    on_record, facts = _runs_of(ledger), {each.facts().run: each for each in directories}
    for peer in peers:
        with Ledger.open(directories[0].ledger(peer), peer, read_only=True) as beside:
            unknown = _runs_of(beside) - on_record - facts.keys()
        if unknown:
            raise InputError(
                f"{ledger.path}: {peer} took part in run {min(unknown)}, which this backup is older than; name that "
                "run's folder with --also"
            )
    for run, directory in facts.items():
        plan = begun_plan(directory)
        if run not in on_record and ledger.hospital in {each.id for each in plan.hospitals}:
            mine = plan.hospital(HospitalId(ledger.hospital))
            put_on_record(ledger, declaration_for(plan, mine, run, private=directory.facts().private), lost=True)


def _runs_of(ledger: Ledger) -> set[str]:
    return {record.declaration.run for record in ledger.runs()}
