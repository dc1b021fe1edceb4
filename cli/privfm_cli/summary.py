"""What a person reads when a run is over."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path

from privfm.dp.figures import figure
from privfm.federation.records import HospitalResult, Interval, ProbeComparison, RunResult
from privfm.plan import Plan
from privfm.report import probe_verdict, public_loss_verdict
from privfm_cli.console import WIDTH, Column, show, show_table

__all__ = ["show_result"]

FILES = (
    ("model.safetensors", "the encoder; config.json beside it says how timm makes it"),
    ("report.html", "curves, spending, reconstructions, the privacy statement"),
    ("privacy.json", "the privacy statement for machines"),
    ("plan.toml", "exactly what was trained, and under which guarantee"),
    ("rounds.jsonl", "the coordinator's record of every round"),
    ("ledgers", "what each hospital spent, hash-chained"),
)


def show_result(result: RunResult, plan: Plan) -> None:
    """Write the result to standard output."""
    if not result.private:
        why = "coins were injected" if plan.privacy.dp else "noise was left out"
        show(f"NOT PRIVATE: this run's {why}; its epsilon protects nobody.\n")
    _show_hospitals(result, plan)
    show()
    show(textwrap.fill(public_loss_verdict(result.public_loss, plan), WIDTH))
    if result.probe is not None:
        show()
        _show_probe(result.probe)
    show()
    _show_files(result.out)
    show()
    _show_next(result.out)


def _show_hospitals(result: RunResult, plan: Plan) -> None:
    hospitals, unit = result.hospitals, plan.privacy.unit
    columns = [
        Column("hospital", right=False),
        Column(f"nominal {unit}s"),
        Column("sampling rate"),
        Column("noise multiplier"),
        Column("steps"),
        Column("epsilon spent"),
        Column("of allowed"),
    ]
    show_table(columns, [_hospital_row(hospital) for hospital in hospitals])
    deltas = ", ".join(sorted({f"{hospital.delta:g}" for hospital in hospitals}))
    if not result.private:
        return
    show(f"Epsilon is per {unit}, at delta {deltas}, against everyone, the coordinator included.")
    if result.composed is not None:
        places = plan.data.max_hospitals_per_patient
        show(f"A {unit} with images at {places} hospitals, as declared: epsilon {figure(result.composed)}.")
    left = plan.reserved_steps - max(hospital.steps for hospital in hospitals)
    if left > 0:
        show(f"What is left of it was kept for rounds that a crash might have cost: {left} steps.")


def _hospital_row(hospital: HospitalResult) -> tuple[str, ...]:
    return (
        hospital.id,
        str(hospital.nominal_units),
        f"{hospital.sample_rate:g}",
        figure(hospital.noise_multiplier),
        str(hospital.steps),
        figure(hospital.epsilon),
        f"{hospital.epsilon_allowed:g}",
    )


def _show_probe(probe: ProbeComparison) -> None:
    show("Linear probe of the encoder on held-out patients (balanced accuracy, 95% interval)")
    states = [
        ("trained", probe.trained),
        ("start of the run", probe.initial),
        ("noise only", probe.noise_only),
        ("untrained", probe.untrained),
    ]
    for name, interval in states:
        show(f"  {name:<17} {_interval(interval)}")
    show(textwrap.fill(probe_verdict(probe), WIDTH))


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f}  [{interval.low:.3f}, {interval.high:.3f}]"


def _show_files(out: Path) -> None:
    show(f"Files in {out}")
    for name, what in FILES:
        if (out / name).exists():
            show(f"  {name:<18} {what}")


def _show_next(out: Path) -> None:
    directory = shlex.quote(str(out))
    show("Next")
    show(f"  privfm budget show {directory}")
    show(f"  privfm budget verify {directory}")
    show(f"  privfm audit {directory} --quick")
    show(f"  privfm report {directory}")
