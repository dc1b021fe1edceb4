"""A search for settings in which every run is paid for, by lasting ledgers.

The best trial is the result: its model is there already, and nothing is trained again. Trials are compared by their
loss on public images, which shows of patients no more than the released models do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privfm.errors import InputError, RunError
from privfm.federation.directory import RunDirectory, check_free
from privfm.federation.observer import Observer
from privfm.federation.records import PublicLoss
from privfm.federation.search import HospitalCost, Search, Trial
from privfm.federation.stating import state_run
from privfm.federation.training import train
from privfm.files import write_atomic
from privfm.plan import stored_plan

__all__ = ["SearchResult", "TrialResult", "run_search"]


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    Args:
        name: of the trial.
        values: what was tried.
        out: its folder.
        public_loss: what the trials are compared by.
        epsilon: what the run spent, by hospital.
    """

    name: str
    values: Mapping[str, Any]
    out: Path
    public_loss: PublicLoss
    epsilon: Mapping[str, float]

    @property
    def score(self) -> float:
        """The loss on public images, lower being better; a loss that is no number is worst."""
        loss = self.public_loss.trained
        return loss if math.isfinite(loss) else math.inf

    def to_json(self) -> dict[str, Any]:
        losses = {name: loss if math.isfinite(loss) else None for name, loss in asdict(self.public_loss).items()}
        return {**asdict(self), "out": str(self.out), "public_loss": losses}


@dataclass(frozen=True)
class SearchResult:
    """A finished search."""

    search: Search
    trials: tuple[TrialResult, ...]

    @property
    def best(self) -> TrialResult:
        """The trial with the least loss on public images, the earlier of equals."""
        return min(self.trials, key=lambda each: each.score)

    def to_json(self) -> dict[str, Any]:
        trials = [each.to_json() for each in self.trials]
        return {**self.search.to_json(), "trials": trials, "best": self.best.name}


def run_search(
    search: Search | None, out: Path, observe: Callable[[Trial], Observer] = lambda trial: Observer()
) -> SearchResult:
    """Return the result of a search, kept in `out`: one folder a trial, `search.json` and `result.json`.

    Args:
        search: None to go on with the one in `out`; trials that are over are not run again.
        out: made here, unless the search goes on.
        observe: called before each trial that is run; its observer hears of the progress.

    Raises:
        InputError: `out` is taken, or holds no search to go on with.
        BudgetExceeded, ProtocolError, LedgerError, RunError: as for `privfm.federation.training.train`.
    """
    search = _lay_out(search, out) if search is not None else _read_search(out)
    results = tuple(_run_trial(each, search, out, observe) for each in search.trials)
    result = SearchResult(search, results)
    statement = state_run(RunDirectory.existing(result.best.out))
    write_atomic(out / "privacy.json", statement.to_json().encode())
    write_atomic(out / "result.json", (json.dumps(result.to_json(), indent=2) + "\n").encode())
    return result


def _lay_out(search: Search, out: Path) -> Search:
    check_free(out)
    out.mkdir(parents=True)
    for trial in search.trials:
        write_atomic(out / f"{trial.name}.toml", trial.plan.to_toml().encode())
    write_atomic(out / "search.json", (json.dumps(search.to_json(), indent=2) + "\n").encode())
    return search


def _read_search(out: Path) -> Search:
    path = out / "search.json"
    if not path.is_file():
        raise InputError(f"--out {out}: no search to go on with (it has no search.json); start one in another folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        trials = [(each["name"], each["values"]) for each in content["trials"]]
        costs = tuple(HospitalCost(**each) for each in content["hospitals"])
        ledgers, delta = Path(content["ledgers"]), float(content["delta"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read ({type(error).__name__}); the search's folder is damaged") from None
    return Search(
        ledgers, delta, tuple(Trial(name, values, stored_plan(out / f"{name}.toml")) for name, values in trials), costs
    )


def _run_trial(trial: Trial, search: Search, out: Path, observe: Callable[[Trial], Observer]) -> TrialResult:
    """Return a trial's result; run it, or go on with it, where that is not there."""
    folder = out / trial.name
    if not (folder / "result.json").exists():
        resume = folder.exists()
        plan = RunDirectory.existing(folder).plan if resume else trial.plan
        train(plan, folder, resume=resume, ledgers=search.ledgers, observer=observe(trial))
    content = RunDirectory.existing(folder).read_json("result.json")
    return TrialResult(
        name=trial.name,
        values=trial.values,
        out=folder,
        public_loss=PublicLoss(**content["public_loss"]),
        epsilon={each["id"]: each["epsilon"] for each in content["hospitals"]},
    )
