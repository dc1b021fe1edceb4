"""A run's directory made by hand, small and complete but for the network."""

from __future__ import annotations

import json
import math
from pathlib import Path

from privfm.dp.accounting import accountant_version
from privfm.dp.events import SampledGaussian
from privfm.dp.statement import PrivacyStatement, hospital_statement
from privfm.plan import parse_plan

HOSPITALS = ("hospital-1", "hospital-2", "hospital-3", "hospital-4", "hospital-5")
POISON = "POISON-a-hospital-keeps-this"


def make_run(
    directory: Path,
    *,
    rounds: int = 10,
    hospitals: tuple[str, ...] = HOSPITALS,
    private: bool = True,
    over: bool = True,
) -> Path:
    """Write what a run leaves; the files that a hospital keeps hold `POISON`."""
    plan = parse_plan(
        {
            "data": {"hospitals": len(hospitals)},
            "federation": {"rounds": 10},
            "hospitals": [
                {"id": name, "nominal_units": 50 + i, "noise_multiplier": 2.5} for i, name in enumerate(hospitals)
            ],
        }
    )
    directory.mkdir(parents=True)
    (directory / "plan.toml").write_text(plan.to_toml())
    (directory / "run.json").write_text(
        json.dumps(
            {
                "run": "5f" * 16,
                "plan_hash": plan.hash().hex(),
                "version": "0.1.0",
                "private": private,
                "started": "2026-01-02T03:04:05+00:00",
            }
        )
    )
    lines = [json.dumps(_round(number, hospitals)) for number in range(1, rounds + 1)]
    (directory / "rounds.jsonl").write_text("".join(line + "\n" for line in lines))
    for name in hospitals:
        (directory / "hospitals" / name).mkdir(parents=True)
        (directory / "hospitals" / name / "local.jsonl").write_text(POISON)
    if over:
        (directory / "privacy.json").write_text(_statement(rounds, hospitals, private=private))
        (directory / "result.json").write_text(json.dumps(_result(directory, rounds, hospitals, private=private)))
    return directory


def _round(number: int, hospitals: tuple[str, ...]) -> dict[str, object]:
    return {
        "round": number,
        "attempt": 0,
        "cohort": hospitals,
        "survivors": hospitals,
        "update_norm": 0.5 + 1 / number,
        "public_loss": 0.8 + 0.25 * math.exp(-number / 3),
        "local_loss": [0.9 + 0.2 * math.exp(-number / 3), 0.05],
        "epsilon": {name: 2.2 * math.sqrt(number) + 0.02 * i for i, name in enumerate(hospitals)},
        "transcript": f"{number:064x}",
        "model_hash": f"{number + 100:064x}",
        "bytes_up": 2_412_345,
    }


def _result(directory: Path, rounds: int, hospitals: tuple[str, ...], *, private: bool) -> dict[str, object]:
    return {
        "out": str(directory),
        "model": str(directory / "model.safetensors"),
        "rounds": rounds,
        "seconds": 93.2,
        "private": private,
        "hospitals": [
            {
                "id": name,
                "nominal_units": 50 + i,
                "sample_rate": 0.5,
                "noise_multiplier": 2.513,
                "steps": rounds,
                "epsilon": 2.2 * math.sqrt(rounds) + 0.02 * i,
                "epsilon_allowed": 8.0,
                "delta": 1e-5,
            }
            for i, name in enumerate(hospitals)
        ],
        "public_loss": {"start": 1.05, "trained": 0.81, "noise_only": 1.06},
        "probe": {
            "trained": 0.585,
            "untrained": 0.521,
            "noise_only": 0.559,
            "initial": 0.551,
            "intervals": {
                "trained": [0.551, 0.62],
                "untrained": [0.487, 0.556],
                "noise_only": [0.524, 0.593],
                "initial": [0.517, 0.586],
            },
        },
    }


def _statement(rounds: int, hospitals: tuple[str, ...], *, private: bool) -> str:
    event = SampledGaussian(0.5, 2.513, rounds)
    rows = [
        hospital_statement(
            hospital=name,
            nominal_units=50 + i,
            clip_norm=1.0,
            event=event,
            charged=[event],
            steps_reserved_for_retries=2,
            delta=1e-5,
            epsilon_allowed=8.0,
            private=private,
            accountant="rdp",
        )
        for i, name in enumerate(hospitals)
    ]
    return PrivacyStatement(
        accountant="rdp",
        accountant_version=accountant_version("rdp"),
        run="5f" * 16,
        private=private,
        unit="patient",
        contribution_cap="4 images in 2 views each, clipped once",
        hospitals=tuple(rows),
        trust_model=("Nobody needs to be trusted.",),
        releases=("Masked updates.",),
        data_touches=("Training.",),
        randomness="operating system",
    ).to_json()
