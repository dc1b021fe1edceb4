"""What a run keeps on disk, and in which order, so that a crash at any moment can be resumed from."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from privfm.errors import InputError, RunError, VerificationError
from privfm.federation.folder import is_run
from privfm.federation.records import RoundRecord
from privfm.files import sync_folder, write_atomic
from privfm.plan import Plan, stored_plan

OUTCOME = ("run.json", "roster.json", "start.safetensors", "rounds.jsonl", "checkpoint.safetensors")
"""What a run leaves that nothing may change after its end; the plan has a hash of its own."""

__all__ = ["Checkpoint", "RunDirectory", "RunFacts", "begun_plan", "check_free", "new_run"]


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands between two rounds.

    Args:
        rounds: finished ones.
        model: trainable parameters of the global model.
        strategy: the server optimiser's state.
    """

    rounds: int
    model: Float[Tensor, " parameters"]
    strategy: dict[str, Tensor]


class RunFacts(BaseModel):
    """What a run is, written once when it is laid out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(pattern="^[0-9a-f]{32}$")
    plan_hash: str = Field(pattern="^[0-9a-f]{64}$")
    version: str
    private: bool
    started: str
    public_data: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RunDirectory:
    """A run's folder. Files are written whole or not at all; the checkpoint decides which rounds are finished."""

    root: Path

    @classmethod
    def existing(cls, root: Path) -> RunDirectory:
        """Return the folder of a run; InputError when there is none, RunError when it is no longer whole."""
        if not is_run(root):
            raise InputError(f"{root}: not a run's folder (no run.json); give the folder that `privfm train` wrote")
        if not (root / "run.json").is_file():
            raise RunError(f"{root / 'run.json'}: is missing; the run's folder is damaged, restore the file")
        return cls(root)

    @property
    def plan(self) -> Plan:
        return stored_plan(self.root / "plan.toml")

    def facts(self) -> RunFacts:
        try:
            return RunFacts.model_validate(self.read_json("run.json"))
        except ValidationError:
            raise RunError(f"{self.root / 'run.json'}: is not what was written; the run's folder is damaged") from None

    def ledger(self, hospital: str) -> Path:
        folder = self.root / "ledgers"
        return (folder.readlink() if self.shares_ledgers else folder) / f"{hospital}.sqlite"

    @property
    def shares_ledgers(self) -> bool:
        """Whether the hospitals' ledgers live elsewhere, for other runs to go on with; then `ledgers` points there."""
        return (self.root / "ledgers").is_symlink()

    @property
    def over(self) -> bool:
        """Whether its last round is finished."""
        return self.load_checkpoint().rounds >= self.plan.federation.rounds

    def own(self, hospital: str) -> Path:
        """Return the folder of what a hospital keeps to itself."""
        return self.root / "hospitals" / hospital

    def write_json(self, name: str, content: Any) -> None:
        write_atomic(self.root / name, (json.dumps(content, indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        path = self.root / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, RecursionError, ValueError) as error:
            raise RunError(f"{path}: cannot be read ({type(error).__name__}); the run's folder is damaged") from None

    def next_attempt(self, number: int, *, anew: bool = False) -> tuple[int, int]:
        """Return the attempt and generation with which to announce round `number`, counted durably before use.

        Args:
            number: the round.
            anew: whether hospitals are to compute it again rather than mask what they stored.
        """
        last = self.read_json("attempt.json") if (self.root / "attempt.json").exists() else {}
        attempt, generation = 0, 0
        if last and self._number(last, "round") == number:
            attempt, generation = self._number(last, "attempt") + 1, self._number(last, "generation") + anew
        self.write_json("attempt.json", {"round": number, "attempt": attempt, "generation": generation})
        return attempt, generation

    def _number(self, content: Any, key: str) -> int:
        if not isinstance(content, dict) or type(content.get(key)) is not int:
            raise RunError(f"{self.root / 'attempt.json'}: has no number {key}; the run's folder is damaged")
        return int(content[key])

    def records(self) -> list[RoundRecord]:
        """Return the records of finished rounds."""
        path = self.root / "rounds.jsonl"
        if not path.exists():
            return []
        try:
            return [RoundRecord.from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, RecursionError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: cannot be read ({type(error).__name__}); the run's folder is damaged") from None

    def finish_round(self, record: RoundRecord, checkpoint: Checkpoint) -> None:
        """Make a round count: its record first, then the checkpoint, which alone decides."""
        records = [*self.records()[: record.round - 1], record]
        lines = "".join(json.dumps(each.to_json()) + "\n" for each in records)
        write_atomic(self.root / "rounds.jsonl", lines.encode())
        self.save_checkpoint(checkpoint)

    def outcome(self) -> dict[str, bytes]:
        """Return the SHA-256 of every file that is as it will stay once the last round is over."""
        return {name: hashlib.sha256(self.read_bytes(name)).digest() for name in OUTCOME}

    def read_bytes(self, name: str) -> bytes:
        path = self.root / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror}); the run's folder is damaged") from None

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        tensors = {"model": checkpoint.model} | {f"strategy.{k}": v for k, v in checkpoint.strategy.items()}
        content = save({k: v.contiguous() for k, v in tensors.items()}, {"rounds": str(checkpoint.rounds)})
        write_atomic(self.root / "checkpoint.safetensors", content)

    def load_checkpoint(self) -> Checkpoint:
        path = self.root / "checkpoint.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                rounds, model = int((file.metadata() or {})["rounds"]), tensors["model"].to(torch.float32)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise RunError(f"{path}: cannot be read ({type(error).__name__}); the run's folder is damaged") from None
        prefix = "strategy."
        strategy = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        return Checkpoint(rounds, model, strategy)


def finished_rounds(directory: RunDirectory) -> list[RoundRecord]:
    """Return the records of the rounds that count.

    Raises:
        RunError: a file is damaged.
        VerificationError: there are other records than of those rounds.
    """
    finished = directory.load_checkpoint().rounds
    records = directory.records()[:finished]
    if [record.round for record in records] != list(range(1, finished + 1)):
        raise VerificationError(
            f"{directory.root / 'rounds.jsonl'}: does not hold the {finished} finished rounds; restore it"
        )
    return records


def begun_plan(directory: RunDirectory) -> Plan:
    """Return the run's plan; VerificationError when it is not the one that the run was begun with."""
    plan = directory.plan
    if plan.hash().hex() != directory.facts().plan_hash:
        raise VerificationError(f"{directory.root / 'plan.toml'}: not the plan that the run was begun with; restore it")
    return plan


@contextmanager
def new_run(root: Path, ledgers: Path | None = None) -> Iterator[RunDirectory]:
    """Lay out a run's folder beside its place and move it there when the block ends, so that it is whole or not there.

    Args:
        ledgers: a folder of hospitals' ledgers that other runs use too, made where it is missing; by default the run
            has its own.

    Raises:
        InputError: something is at `root` already, or `ledgers` is no folder.
    """
    check_free(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        draft.chmod(0o755)
        if ledgers is None:
            (draft / "ledgers").mkdir()
        else:
            (draft / "ledgers").symlink_to(_folder_of_ledgers(ledgers), target_is_directory=True)
        (draft / "hospitals").mkdir()
        yield RunDirectory(draft)
        for folder in (draft / "ledgers", draft / "hospitals", *(draft / "hospitals").iterdir(), draft):
            sync_folder(folder)
        draft.rename(root)
        sync_folder(root.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _folder_of_ledgers(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--ledgers {folder}: not a folder; give the one that the hospitals' ledgers are in")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def check_free(root: Path) -> None:
    """Raise InputError when there is something at `root`."""
    if root.exists():
        raise InputError(f"--out {root}: exists already; add --resume to go on with it, or name another folder")
