"""Budgets: how long planning takes, how near it comes to its target, and how near the accountant is to a finer grid.

    python -m benchmarks.budgets --json [--hospitals 100] [--steps 10000] [--processes 2]

Hospitals differ in sampling rate, epsilon and delta. `share` is the calibrated epsilon over its target; `finer` is the
epsilon that was reported over that of a grid eight times as fine, for some of the hospitals. `wall_s` includes starting
worker processes and importing what they need; `cpu_s` is the processor time of all of them, which other work on the
machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from random import Random
from typing import Any

from privfm.dp.calibration import CalibratedNoise, NoiseRequest, calibrate_noises
from privfm.dp.events import SampledGaussian, compose
from privfm.dp.pld import pld_epsilon_on_grid, settled_grid


def requests(hospitals: int, steps: int, seed: int) -> list[NoiseRequest]:
    """Hospitals of 50 to 100,000 patients that draw 8 to 128 of them a step."""
    random = Random(seed)
    return [
        NoiseRequest(
            epsilon=random.choice([1.0, 2.0, 4.0, 8.0]),
            delta=random.choice([1e-5, 1e-6]),
            sample_rate=min(1.0, random.choice([8, 16, 32, 64, 128]) / 10 ** random.uniform(1.7, 5.0)),
            steps=steps,
        )
        for _ in range(hospitals)
    ]


def against_finer_grid(request: NoiseRequest, found: CalibratedNoise) -> float:
    """The reported epsilon over that of a grid eight times as fine."""
    events = compose([SampledGaussian(request.sample_rate, found.noise_multiplier, request.steps)])
    grid = settled_grid(events, request.delta)
    return found.epsilon / pld_epsilon_on_grid(events, request.delta, grid / 8)


def measure(hospitals: int, steps: int, processes: int, seed: int) -> dict[str, Any]:
    asked = requests(hospitals, steps, seed)
    start = time.perf_counter()
    found = calibrate_noises(asked, processes=processes)
    wall = time.perf_counter() - start
    shares = [each.epsilon / request.epsilon for request, each in zip(asked, found, strict=True)]
    finer = [against_finer_grid(asked[i], found[i]) for i in range(0, hospitals, max(1, hospitals // 8))]
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "hospitals": hospitals,
        "steps": steps,
        "processes": processes,
        "wall_s": round(wall, 2),
        "cpu_s": round(sum(each.ru_utime + each.ru_stime for each in used[processes > 1 :]), 2),
        "load": round(os.getloadavg()[0], 2),
        "share": {"least": min(shares), "most": max(shares)},
        "finer": {"least": min(finer), "most": max(finer)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast and how exactly noise is planned.")
    parser.add_argument("--hospitals", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object; otherwise one line")
    arguments = parser.parse_args()
    result = measure(arguments.hospitals, arguments.steps, arguments.processes, arguments.seed)
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        share = result["share"]
        print(
            f"{result['hospitals']} hospitals, {result['steps']} steps: {result['wall_s']} s, CPU {result['cpu_s']} s"
        )
        print(f"epsilon {share['least']:.4f} to {share['most']:.4f} of its target")


if __name__ == "__main__":
    main()
