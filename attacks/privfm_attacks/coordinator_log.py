"""What a coordinator knows of a run, and has kept: records of rounds, names, and models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from privfm.errors import VerificationError
from privfm.federation.announcement import Announcement, model_hash
from privfm.federation.directory import RunDirectory, begun_plan
from privfm.federation.network import Learner, load_network, network_hash, trained
from privfm.federation.notebook import Notebook
from privfm.federation.records import RoundRecord
from privfm.plan import Plan
from privfm.secagg import Roster, some_of
from privfm_attacks.participation import Participation

__all__ = ["Log", "read_log"]

FIRST, LAST = "start.safetensors", "network.safetensors"


@dataclass(frozen=True)
class Log:
    """What a coordinator knows of a run.

    Args:
        plan: complete.
        records: all that there are, in the order in which they were written; of finished rounds and what lies beside.
        members: names in the roster.
        models: the weights that are kept of the models that were broadcast, by the name of the file.
        first: whether the first of them is the one that hospitals bound the first round to; None if it cannot be told.
        last: whether the last one is what the rounds led to; None while the run goes on.
        private: whether nobody can replay the hospitals' noise.
        noted: what hospitals, where their notes are at hand, found suspicious about models that they received.
        finished: how many rounds the checkpoint says are over; None where there is none to ask.
    """

    plan: Plan
    records: tuple[RoundRecord, ...]
    members: frozenset[str]
    models: Mapping[str, Mapping[str, Tensor]]
    first: bool | None = None
    last: bool | None = None
    private: bool = True
    noted: tuple[str, ...] = ()
    finished: int | None = None

    @property
    def participation(self) -> Participation:
        names = {name for record in self.records for name in record.survivors}
        return Participation(tuple(sorted(names)), tuple(frozenset(record.survivors) for record in self.records))

    @property
    def noised(self) -> bool:
        """Whether a hospital's update carries noise that nobody can take away."""
        return self.private and self.plan.privacy.dp

    @property
    def threshold(self) -> int:
        return self.plan.secagg.threshold or len(self.plan.hospitals)


def read_log(directory: RunDirectory) -> Log:
    """Return the log of a run's folder.

    Raises:
        RunError: a file is missing or damaged.
        VerificationError: the plan is not the one that the run was begun with, or a finished round has no record.
    """
    plan, checkpoint = begun_plan(directory), directory.load_checkpoint()
    records = _records(directory, checkpoint.rounds)
    learners = {name: load_network(directory.root, name) for name in (FIRST, LAST) if (directory.root / name).exists()}
    last = learners.get(LAST)
    return Log(
        plan=plan,
        records=records,
        members=frozenset(Roster.from_json(directory.read_bytes("roster.json")).names),
        models={name: learner.network.state_dict() for name, learner in learners.items()},
        first=_is_first(learners[FIRST], records[0]) if records else None,
        last=None if last is None else torch.equal(trained(last.network), checkpoint.model),
        private=directory.facts().private,
        noted=tuple(_noted(directory, plan)),
        finished=checkpoint.rounds,
    )


def _records(directory: RunDirectory, finished: int) -> tuple[RoundRecord, ...]:
    """All records of the folder, repeated and further ones too, which who only goes on with the run cuts off."""
    records = tuple(directory.records())
    if list(dict.fromkeys(record.round for record in records))[:finished] != list(range(1, finished + 1)):
        raise VerificationError(
            f"{directory.root / 'rounds.jsonl'}: does not hold the {finished} finished rounds; restore it"
        )
    return records


def _noted(directory: RunDirectory, plan: Plan) -> Iterator[str]:
    """By round of the plan, which hospitals found what."""
    found: dict[tuple[int, str], list[str]] = {}
    for hospital in plan.hospitals:
        for number, lines in Notebook(directory.own(hospital.id)).imprints():
            for line in lines if 1 <= number <= plan.federation.rounds else ():
                found.setdefault((number, line), []).append(hospital.id)
    for (number, line), names in sorted(found.items()):
        yield f"the model of round {number}, as {some_of(list(dict.fromkeys(names)))} received it: {line}"


def _is_first(start: Learner, record: RoundRecord) -> bool:
    """Whether a record's hash is that of the run's start, in any generation that its attempts leave room for."""
    frozen, model = network_hash(start.network), trained(start.network).numpy()
    return any(
        model_hash(frozen, Announcement(record.round, record.attempt, generation, record.cohort, model)).hex()
        == record.model_hash
        for generation in range(record.attempt + 1)
    )
