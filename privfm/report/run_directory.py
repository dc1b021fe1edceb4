"""What the report reads of a run: the coordinator's files, the statement, and where ledgers stand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privfm.dp.figures import figure
from privfm.dp.statement import PrivacyStatement
from privfm.errors import InputError, PrivfmError, RunError, VerificationError
from privfm.federation import directory as run_directory
from privfm.federation.records import RoundRecord
from privfm.federation.stating import audits_of, state_run
from privfm.federation.verifying import verify_run
from privfm.plan import Plan, stored_plan

__all__ = ["RunDirectory", "read_run"]


@dataclass(frozen=True)
class RunDirectory:
    """A run's public files, read.

    Args:
        path: the directory.
        plan: what was trained.
        header: run.json.
        rounds: finished rounds, in order.
        result: result.json; None while the run is not over.
        statement: privacy.json; None while the run is not over.
        gone_on: what hospitals' ledgers say now where that is not the statement any more, in a sentence each.
        mismatch: why the folder and its ledgers cannot both be true; None where they can.
    """

    path: Path
    plan: Plan
    header: Mapping[str, Any]
    rounds: tuple[RoundRecord, ...]
    result: Mapping[str, Any] | None
    statement: PrivacyStatement | None
    gone_on: tuple[str, ...]
    mismatch: str | None

    @property
    def private(self) -> bool:
        """False when coins were injected or noise left out, so that the guarantee protects nobody."""
        return bool(self.header["private"])


def read_run(directory: Path) -> RunDirectory:
    """Return the run in `directory`.

    Raises:
        InputError: it is not a run's directory.
        RunError: a file of it is damaged.
    """
    plan_path = directory / "plan.toml"
    if not plan_path.is_file():
        raise InputError(f"{directory}: not a run (no plan.toml); give the folder that privfm train wrote")
    statement = _read_statement(directory / "privacy.json")
    if statement is not None and (directory / "audit.json").exists():  # made after the statement
        audits = audits_of(run_directory.RunDirectory.existing(directory))
        statement = statement.model_copy(update={"audits": audits})
    return RunDirectory(
        path=directory,
        plan=stored_plan(plan_path),
        header=_read_object(directory / "run.json", required=("run", "plan_hash", "version", "private", "started")),
        rounds=_read_rounds(directory / "rounds.jsonl"),
        result=_read_if_there(directory / "result.json"),
        statement=statement,
        gone_on=() if statement is None else tuple(_gone_on(directory, statement)),
        mismatch=_mismatch(directory),
    )


def _mismatch(directory: Path) -> str | None:
    if not (directory / "ledgers").exists():
        return "its ledgers are not here"
    try:
        verify_run(run_directory.RunDirectory.existing(directory))
    except PrivfmError as error:
        return str(error)
    return None


def _gone_on(directory: Path, statement: PrivacyStatement) -> Iterator[str]:
    """Yield where ledgers stand elsewhere than the statement says, for later runs or a recovery charged them."""
    if not (directory / "ledgers").exists():
        return
    try:
        now = {row.id: row for row in state_run(run_directory.RunDirectory.existing(directory)).hospitals}
    except VerificationError:
        return  # told as a mismatch
    for row in statement.hospitals:
        spent, cap = now[row.id].epsilon_spent, now[row.id].lifetime_cap
        if not math.isclose(spent, row.epsilon_spent, rel_tol=1e-9):
            yield f"{row.id} has spent epsilon {figure(spent)} by now, not {figure(row.epsilon_spent)}."
        if cap != row.lifetime_cap:
            yield f"{row.id} has a lifetime limit of {cap} by now, not {row.lifetime_cap or 'none'}."


def _read_if_there(path: Path) -> Mapping[str, Any] | None:
    return _read_object(path) if path.exists() else None


def _read_statement(path: Path) -> PrivacyStatement | None:
    if not path.exists():
        return None
    try:
        return PrivacyStatement.from_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise RunError(f"{path}: cannot be read ({_reason(error)}); restore the file") from None


def _read_object(path: Path, required: tuple[str, ...] = ()) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RunError(f"{path}: cannot be read ({_reason(error)}); restore the file") from None
    if not isinstance(content, dict) or not set(required) <= content.keys():
        raise RunError(f"{path}: must be an object with {', '.join(required) or 'keys'}; restore the file")
    return content


def _read_rounds(path: Path) -> tuple[RoundRecord, ...]:
    if not path.exists():
        return ()
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            records.append(RoundRecord.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: line {number} is damaged ({_reason(error)}); restore the file") from None
    return tuple(records)


def _reason(error: Exception) -> str:
    return error.strerror or "unreadable" if isinstance(error, OSError) else type(error).__name__
