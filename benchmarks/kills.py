"""`kill -9` at random moments of training: what was charged, what was made, and whether every run could finish.

    python -m benchmarks.kills --json [--kills 200] [--rounds 12] [--reserve 60] [--seed 0] [--lasting]

A process trains a tiny federation and is killed, most often within a round or two of its start and now and then
before its first round; the next one goes on with the run, and a run that is over is followed by a new one. Every noised
gradient that is made leaves a line in a file before it is made, apart from any ledger. After each kill, for every
hospital: the ledger is whole; it has charged at least the rounds whose sums the coordinator has, and at least the
noised gradients that were made; and `privfm budget verify` finds nothing. A process that ends with an error ends the
measurement; so does a run that used up its reserve. With `--lasting` all runs use the same ledgers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import torch

from privfm.dp.clipping import ClippedSum
from privfm.dp.coins import Stream
from privfm.dp.ledger import Ledger
from privfm.dp.mechanism import StepMechanism
from privfm.federation.directory import RunDirectory
from privfm.federation.observer import Observer
from privfm.federation.training import train
from privfm.federation.verifying import verify_run
from privfm.plan import Plan, parse_plan

UNITS = {"hospital-1": 8, "hospital-2": 9, "hospital-3": 10}
"""Declared units; each hospital's own, so that a noised gradient tells whose it is."""

SPAN_S = 0.6
"""Processes are killed within that time: one to three rounds."""


def tiny_plan(rounds: int, reserve: int) -> Plan:
    return parse_plan(
        {
            "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3, "min_patients": 4},
            "model": {
                "patch_size": 4,
                "width": 16,
                "depth": 1,
                "heads": 2,
                "init": "scratch",
                "trainable": "norm-bias",
            },
            "privacy": {"images_per_unit": 2, "views": 1, "clip_norm": 1.0},
            "federation": {"rounds": rounds, "local_steps": 2, "retry_rounds": reserve},
            "evaluation": {"probe": False},
            "performance": {"device": "cpu", "threads": 1},
            "hospitals": [{"id": name, "nominal_units": units} for name, units in UNITS.items()],
        }
    )


class Loud(Observer):
    """Says when rounds begin, and knows when they are over."""

    def __init__(self, begun: Connection) -> None:
        self._begun, self.training = begun, False

    def stage(self, text: str) -> None:
        self.training = text == "training"
        if self.training:
            self._begun.send_bytes(b"training")


def work(plan: Plan, out: Path, witness: Path, ledgers: Path | None, begun: Connection) -> None:
    """Train in this process, noting every noised gradient of patients in `witness` before it is made."""
    observer = Loud(begun)
    torch.set_num_threads(1)
    notes, made = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT), StepMechanism.release

    def release(mechanism: StepMechanism, clipped: ClippedSum, stream: Stream) -> torch.Tensor:
        if observer.training:  # the control makes noise alone, afterwards
            os.write(notes, f"{mechanism.nominal_units}\n".encode())
        return made(mechanism, clipped, stream)

    StepMechanism.release = release  # type: ignore[method-assign, assignment]
    resume = out.exists()
    train(RunDirectory(out).plan if resume else plan, out, resume=resume, ledgers=ledgers, observer=observer)


@dataclass(frozen=True)
class Moment:
    """When a process is killed: so many seconds after its start, or after its rounds begin."""

    seconds: float
    of_rounds: bool


def moments(random: Random) -> Iterator[Moment]:
    """A fifth at any time since the start, two fifths evenly over rounds, two fifths soon after they begin."""
    while True:
        draw = random.random()
        if draw < 0.2:
            yield Moment(random.uniform(0.0, 3 * SPAN_S), of_rounds=False)
        elif draw < 0.6:
            yield Moment(random.uniform(0.0, SPAN_S), of_rounds=True)
        else:
            yield Moment(SPAN_S * 10 ** random.uniform(-4.0, 0.0), of_rounds=True)


def killed(plan: Plan, out: Path, witness: Path, ledgers: Path | None, moment: Moment | None) -> bool:
    """Let a process train, kill it at `moment`, and return whether it was still at it.

    Raises:
        SystemExit: it ended by itself with an error.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(plan, out, witness, ledgers, there))
    process.start()
    there.close()
    if moment is not None:
        if moment.of_rounds:
            here.poll(300)
        process.join(moment.seconds)
        process.kill()
    process.join(600)
    here.close()
    if process.exitcode not in (0, -9):
        raise SystemExit(f"{out}: a process ended with {process.exitcode}; its last words are above")
    return process.exitcode == -9


@dataclass(frozen=True)
class Tally:
    """One hospital's rounds and noised gradients of one run."""

    charged: int
    released: int
    steps_charged: int
    steps_made: int


def tally(out: Path, witness: Path) -> dict[str, Tally]:
    """Each hospital's tally after every check; nothing before the run was laid out."""
    if not out.exists():
        return {}
    directory = RunDirectory.existing(out)
    run, released = directory.facts().run, directory.load_checkpoint().rounds
    made = Counter(int(line) for line in witness.read_text().splitlines()) if witness.exists() else Counter[int]()
    found, on_record = {}, True
    for name, units in UNITS.items():
        with Ledger.open(directory.ledger(name), name, read_only=True) as ledger:
            ledger.verify()
            charged = sum(record.charged for record in ledger.runs() if record.declaration.run == run)
            on_record &= run in {record.declaration.run for record in ledger.runs()}
            found[name] = Tally(charged, released, ledger.spent(run), made[units])
    if on_record or released:  # lasting ledgers get a run on record when its folder is in place
        verify_run(directory)
    for name, each in found.items():
        if each.charged < each.released or each.steps_charged < each.steps_made:
            raise SystemExit(f"{out}: {name} charged less than it made: {each}")
    return found


def measure(kills: int, rounds: int, reserve: int, seed: int, folder: Path, *, lasting: bool) -> dict[str, Any]:
    """Kill so often, then let the last run finish."""
    plan, when, began = tiny_plan(rounds, reserve), moments(Random(seed)), time.monotonic()
    done, runs, within, ledgers = 0, 0, 0, folder / "ledgers" if lasting else None
    total = {name: Counter[str]() for name in UNITS}
    worst = 0
    while done < kills or within:
        out, witness = folder / f"run-{runs}", folder / f"made-{runs}"
        moment = next(when) if done < kills else None
        alive = killed(plan, out, witness, ledgers, moment)
        found = tally(out, witness)
        done += alive
        within += alive
        if not alive:
            finished = (out / "result.json").exists() and all(each.released == rounds for each in found.values())
            if not finished:
                raise SystemExit(f"{out}: ended before its {rounds} rounds were over")
            for name, each in found.items():
                total[name].update(vars(each))
                worst = max(worst, each.charged - rounds)
            print(f"run {runs}: {within} kills; {done} of {kills} so far", file=sys.stderr, flush=True)
            runs, within = runs + 1, 0
    return {
        "kills": done,
        "runs": runs,
        "runs_finished": runs,
        "rounds": rounds,
        "reserve": reserve,
        "lasting_ledgers": lasting,
        "most_of_a_reserve_used": worst,
        "hospitals": {name: dict(counts) for name, counts in total.items()},
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=12, help="of each run")
    parser.add_argument("--reserve", type=int, default=60, help="rounds that crashes may cost a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--lasting", action="store_true", help="all runs in the same ledgers")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="privfm-kills."))
    found = measure(asked.kills, asked.rounds, asked.reserve, asked.seed, folder, lasting=asked.lasting)
    shutil.rmtree(folder)
    print(json.dumps(found, indent=2) if asked.json else "\n".join(f"{key}: {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
