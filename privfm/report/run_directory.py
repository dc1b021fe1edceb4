"""What the report reads of a run: the coordinator's files and the statement, nothing that a hospital keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privfm.dp.statement import PrivacyStatement
from privfm.errors import InputError, RunError
from privfm.federation.records import RoundRecord
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
    """

    path: Path
    plan: Plan
    header: Mapping[str, Any]
    rounds: tuple[RoundRecord, ...]
    result: Mapping[str, Any] | None
    statement: PrivacyStatement | None

    @property
    def private(self) -> bool:
        """False when the coins were injected, so that the guarantee protects nobody."""
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
    return RunDirectory(
        path=directory,
        plan=stored_plan(plan_path),
        header=_read_object(directory / "run.json", required=("run", "plan_hash", "version", "private", "started")),
        rounds=_read_rounds(directory / "rounds.jsonl"),
        result=_read_if_there(directory / "result.json"),
        statement=_read_statement(directory / "privacy.json"),
    )


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
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(RoundRecord.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: line {number} is damaged ({_reason(error)}); restore the file") from None
    return tuple(records)


def _reason(error: Exception) -> str:
    return error.strerror or "unreadable" if isinstance(error, OSError) else type(error).__name__
