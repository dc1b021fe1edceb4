"""Whether what a run leaves for others is what its ledgers and records say: model, statement, result, roster."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privfm import __version__
from privfm.dp.account import Account
from privfm.dp.events import events_to_json
from privfm.dp.ledger import Ledger
from privfm.dp.statement import HospitalStatement, PrivacyStatement
from privfm.errors import InputError, ModelError, RunError, VerificationError
from privfm.federation.announcement import Announcement, model_hash
from privfm.federation.directory import RunDirectory, RunFacts
from privfm.federation.network import Learner, load_network, network_hash, trained, write_trained
from privfm.federation.records import PublicLoss, RoundRecord, RunResult
from privfm.federation.stating import composed_result, hospital_result, statement_from
from privfm.ids import HospitalId
from privfm.models import read_tensors, save_backbone
from privfm.objectives import Reconstructs
from privfm.plan import Plan
from privfm.secagg import Roster

__all__ = ["check_leaving"]

_ROUNDING = 1e-9  # of a number that went through JSON or another machine's arithmetic
_LOSS_ROUNDING = 1e-3  # of a loss that was computed on one device and again on another
_NUMBERS = ("run", "private", "unit", "adjacency", "accountant", "hospitals", "composed")


def check_leaving(
    directory: RunDirectory, plan: Plan, records: Sequence[RoundRecord], ledgers: Mapping[str, Ledger]
) -> None:
    """Raise VerificationError, naming the file, when something that a run left is not what it must be.

    * The roster lists the plan's hospitals under the run's name.
    * The first round started from the network in start.safetensors.
    * The network, the exported model and its description are what the last round made of it.
    * The statement is the one that follows from the ledgers as they stood when it was written.
    * The result's numbers are those of ledgers and records. Its losses of start and noise and its probe are told as
      they are: they were measured once and nothing else holds them.

    A run that is going on, or stopped, is checked as far as it came; one whose result is gone, as one that was stopped
    before it was written.
    """
    facts = directory.facts()
    _check_roster(directory, plan, facts)
    start = load_network(directory.root, "start.safetensors")
    _check_start(directory, start, records)
    ended = any(ledger.outcome(facts.run) for ledger in ledgers.values())
    if ended:
        _check_model(directory, start)
    if (directory.root / "privacy.json").exists() or (directory.root / "result.json").exists():
        then = _check_statement(directory, plan, facts, ledgers)
        if (directory.root / "result.json").exists():
            _check_result(directory, plan, records, then, start)


def _check_roster(directory: RunDirectory, plan: Plan, facts: RunFacts) -> None:
    path = directory.root / "roster.json"
    try:
        roster = Roster.from_json(directory.read_bytes(path.name))
    except InputError as error:
        raise RunError(f"{path}: {error}; the run's folder is damaged") from None
    if (roster.federation, roster.names) != (f"privfm {facts.run}", tuple(each.id for each in plan.hospitals)):
        raise VerificationError(f"{path}: not the roster of this run's hospitals; restore it")


def _check_start(directory: RunDirectory, start: Learner, records: Sequence[RoundRecord]) -> None:
    if not records:
        return
    first, initial, network = records[0], trained(start.network).numpy(), network_hash(start.network)
    generations = range(first.attempt + 1)  # a round is computed anew in a new attempt only
    hashes = (model_hash(network, Announcement(1, 0, each, (), initial)).hex() for each in generations)
    if first.model_hash not in hashes:
        raise VerificationError(f"{directory.root / 'start.safetensors'}: not the network that round 1 started from")


def _check_model(directory: RunDirectory, learner: Learner) -> None:
    """Compare the stored network and the exported model with the start after all rounds; `learner` becomes that."""
    model = directory.load_checkpoint().model
    write_trained(learner.network, model, refresh=False)
    stored = load_network(directory.root).network
    if not _same(dict(learner.network.backbone.state_dict()), dict(stored.backbone.state_dict())) or not torch.equal(
        trained(stored), model
    ):
        raise VerificationError(f"{directory.root / 'network.safetensors'}: not the network of the last round")
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(learner.network.backbone, Path(folder))
        made = RunDirectory(Path(folder))
        if not _same(_tensors(directory), _tensors(made), exactly=learner.plan.model.trainable != "lora"):
            raise VerificationError(f"{directory.root / 'model.safetensors'}: not the model of the last round")
        if directory.read_json("config.json") != made.read_json("config.json"):
            raise VerificationError(f"{directory.root / 'config.json'}: does not describe the model of this run")


def _tensors(directory: RunDirectory) -> dict[str, Tensor]:
    try:
        return read_tensors(directory.root / "model.safetensors")
    except ModelError as error:
        raise RunError(f"{error}; the run's folder is damaged") from None


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor], *, exactly: bool = True) -> bool:
    """Whether all tensors are equal; merged adapters are, up to the arithmetic of another machine."""
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        return False
    alike = torch.equal if exactly else torch.allclose
    return all(alike(ours[name], theirs[name]) for name in ours)


def _check_statement(
    directory: RunDirectory, plan: Plan, facts: RunFacts, ledgers: Mapping[str, Ledger]
) -> Mapping[str, Account]:
    """Return the hospitals' accounts as they stood when the statement was written."""
    path = directory.root / "privacy.json"
    try:
        stated = PrivacyStatement.from_json(directory.read_bytes(path.name))
    except ValueError as error:
        raise RunError(f"{path}: {error}; the run's folder is damaged") from None
    if [row.id for row in stated.hospitals] != [each.id for each in plan.hospitals]:
        raise VerificationError(f"{path}: is not about this run's hospitals")
    _check_date(stated, facts.run, ledgers, path)
    then = {row.id: _as_stated(ledgers[row.id], facts.run, row, path) for row in stated.hospitals}
    again = statement_from(directory, plan, then)
    if stated.privfm_version not in (__version__, facts.version):  # words of a third version could not be compared
        raise VerificationError(
            f"{path}: is by privfm {stated.privfm_version}, and the run by {facts.version}; state it again with: "
            f"privfm train --resume --out {path.parent}"
        )
    _check_stated(path, stated, again)
    return then


def _check_date(stated: PrivacyStatement, run: str, ledgers: Mapping[str, Ledger], path: Path) -> None:
    if not any(account.as_of == stated.as_of for ledger in ledgers.values() for account in ledger.since(run)):
        raise VerificationError(f"{path}: as_of {stated.as_of} is not the date of an entry in a ledger")


def _as_stated(ledger: Ledger, run: str, row: HospitalStatement, path: Path) -> Account:
    """Return the account at which the row was written: at the run's end, or when it was stated again later."""
    for account in ledger.since(run):
        cap = None if account.cap is None else account.cap.epsilon
        events = [event.model_dump() for event in row.events]
        found = (events_to_json(account.events()), account.spent(run), cap, account.asked_out)
        if found == (events, row.steps_charged, row.lifetime_cap, row.asked_out):
            return account
    raise VerificationError(
        f"{path}: says otherwise of {row.id} than {ledger.path}; restore it or, after a recovery, state it again with: "
        f"privfm train --resume --out {path.parent}"
    )


def _check_stated(path: Path, stated: PrivacyStatement, again: PrivacyStatement) -> None:
    """Compare all but versions; of a statement by another version of privfm the numbers, since words may differ."""
    found, wanted = stated.model_dump(mode="json"), again.model_dump(mode="json")
    words = set(found) - {"privfm_version", "accountant_version", "as_of"}
    for name in sorted(words) if stated.privfm_version == __version__ else _NUMBERS:
        if not _alike(found[name], wanted[name]):
            raise VerificationError(
                f"{path}: {name} is not what plan and ledgers say; privfm budget statement {path.parent} says what is"
            )


def _check_result(
    directory: RunDirectory,
    plan: Plan,
    records: Sequence[RoundRecord],
    then: Mapping[str, Account],
    learner: Learner,
) -> None:
    result, run = directory.read_json("result.json"), directory.facts().run
    wanted: dict[str, Any] = {
        "rounds": len(records),
        "private": directory.facts().private,
        "hospitals": [asdict(hospital_result(plan, HospitalId(name), then[name], run)) for name in then],
        "composed": composed_result(plan, {HospitalId(name): account for name, account in then.items()}, run),
    }
    if result.keys() != {field.name for field in fields(RunResult)}:
        raise VerificationError(f"{directory.root / 'result.json'}: holds something else than a result")
    for name, value in wanted.items():
        if not _alike(result[name], value):
            raise VerificationError(f"{directory.root / 'result.json'}: {name} is not what ledgers and records say")
    if isinstance(learner.objective, Reconstructs) and not _ends_with(result, records[-1].public_loss):
        raise VerificationError(f"{directory.root / 'result.json'}: public_loss is not that of the last round")


def _ends_with(result: Mapping[str, Any], loss: float) -> bool:
    """Whether the trained model's loss is that of the last round, measured a second time."""
    told = result["public_loss"]
    if not isinstance(told, dict) or told.keys() != {field.name for field in fields(PublicLoss)}:
        return False
    return isinstance(told["trained"], float) and math.isclose(told["trained"], loss, rel_tol=_LOSS_ROUNDING)


def _alike(one: Any, other: Any) -> bool:
    """Whether two values of JSON are equal, but for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_ROUNDING)
    return bool(one == other)
