"""What audits find where something is to be found, and where nothing is: the figures that they are held to.

    python -m benchmarks.audits --json [--only canaries membership ...] [--runs 20]

`mechanism`: false alarms over seeds. `canaries`: of a plan at epsilon 3 with 400 canaries, the median bound, and how
often the right noise and half of it are flagged. `membership`: of a private run on as many made-up patients as an
interval of 0.05 needs, beside its overfitted control. `property` and `reconstruction`: of the default plan, beside
their controls. `forget`: models that saw patients chosen at random, and such that did not. `transcript`: cases planted
into a run's log. Each can be asked for alone; together they take most of an
hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from privfm_attacks.canaries import audit_canaries
from privfm_attacks.report import Report
from privfm_attacks.run import audit_run, rehearse

from privfm.federation.planning import complete_plan
from privfm.federation.training import train
from privfm.ids import HospitalId
from privfm.plan import Plan, parse_plan

SMALL: dict[str, Any] = {
    "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3, "min_patients": 4},
    "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
    "federation": {"rounds": 2, "local_steps": 1, "retry_rounds": 0},
    "evaluation": {"probe": False},
}
MANY = {"source": "phantom", "patients": 1_500, "image_size": 32, "hospitals": 5}


def mechanism(runs: int) -> dict[str, Any]:
    """False alarms: every run draws from the operating system anew."""
    verdicts = [_figures(rehearse(parse_plan(SMALL), ["mechanism"]))["verdict"] for _ in range(runs)]
    return {"runs": runs, "false_alarms": sum(verdict == "LEAK" for verdict in verdicts)}


def canaries(runs: int) -> dict[str, Any]:
    """Power and false alarms at three sampling rates."""
    return {
        f"q={rate}": _canaries(rate, rounds, runs) for rate, rounds in ((0.05, 100), (0.1, 50), (0.5, 20), (1.0, 5))
    }


def _canaries(rate: float, rounds: int, runs: int) -> dict[str, Any]:
    privacy = {"epsilon": 3.0, "sample_rate": rate}
    federation = {"rounds": rounds, "local_steps": 2, "retry_rounds": 0}
    units = {HospitalId(name): 400 for name in ("a", "b", "c")}
    plan = complete_plan(parse_plan(SMALL | {"privacy": privacy, "federation": federation}), units, 0.3)
    found = [audit_canaries(plan).figures for _ in range(runs)]
    return {
        "runs": runs,
        "median_bound": round(statistics.median(each["bound"] for each in found), 2),
        "right_noise_flagged": sum(each["bound"] > each["claim"] for each in found),
        "half_noise_flagged": sum(each["halved"] > each["claim"] for each in found),
    }


def membership(runs: int) -> dict[str, Any]:
    """A private run on many patients, and as many that it never saw."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(Plan.model_validate({"data": MANY, "evaluation": {"probe": False}}), out)
        return _figures(audit_run(out, ["membership"]))


def forget(runs: int) -> dict[str, Any]:
    """Models trained without privacy with and without patients chosen at random, of a run that nobody asked out of."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(Plan.model_validate({"evaluation": {"probe": False}}), out)
        return _figures(audit_run(out, ["forget"]))


def rehearsed(name: str) -> Callable[[int], dict[str, Any]]:
    """An audit that needs a plan alone, of the default one."""
    return lambda runs: _figures(rehearse(Plan(), [name]))


def transcript(runs: int) -> dict[str, Any]:
    """Cases planted into the log of a run, by whether they were found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(parse_plan(SMALL), out)
        (result,) = audit_run(out, ["transcript"]).audits
    planted = [finding for finding in result.findings if finding.check == "control"]
    return {
        "verdict": str(result.verdict),
        "planted": len(planted),
        "found": sum(finding.passed for finding in planted),
    }


def _figures(report: Report) -> dict[str, Any]:
    (result,) = report.audits
    return {"verdict": str(result.verdict), **{name: round(value, 4) for name, value in result.figures.items()}}


BENCHMARKS: dict[str, Callable[[int], dict[str, Any]]] = {
    "mechanism": mechanism,
    "canaries": canaries,
    "membership": membership,
    "property": rehearsed("property"),
    "reconstruction": rehearsed("reconstruction"),
    "forget": forget,
    "transcript": transcript,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audits", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, Any] = {}
    for name in arguments.only:
        began = time.monotonic()
        found[name] = BENCHMARKS[name](arguments.runs) | {"seconds": 0.0}
        found[name]["seconds"] = round(time.monotonic() - began, 1)
        print(f"{name}: {found[name]}", file=sys.stderr if arguments.json else sys.stdout, flush=True)
    if arguments.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
