"""A run's report: one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privfm.federation.records import Interval, ProbeComparison, PublicLoss
from privfm.files import write_atomic
from privfm.objectives import Reconstructs, get_objective
from privfm.plan import Plan
from privfm.report.audits import AuditsShown, read_audits
from privfm.report.charts import WIDE, BarChart, LineChart, Reference, bar_chart, line_chart
from privfm.report.reconstructions import Reconstruction, reconstruct_public_images
from privfm.report.rendering import rendered
from privfm.report.run_directory import RunDirectory, read_run
from privfm.report.verdict import probe_verdict, public_loss_verdict
from privfm.report.words import short, size

__all__ = ["render_report", "write_report"]

REPORT = "report.html"
NETWORK = "network.safetensors"
PROBE_NAMES = {
    "trained": "trained",
    "initial": "start of the run",
    "noise_only": "noise only",
    "untrained": "untrained",
}


def write_report(directory: Path) -> Path:
    """Write `report.html` into a run's directory and return its path.

    Guarantees: reads the coordinator's files, the statement, the released network and what ledgers say now, and nothing
    else of the run; above all nothing of a hospital's own folder.

    Raises:
        InputError: `directory` is not a run.
        RunError: a file of it is damaged, or the stored network does not fit the plan.
    """
    run = read_run(directory)
    pictures = reconstruct_public_images(directory) if (directory / NETWORK).exists() else ()
    path = directory / REPORT
    audits = read_audits(directory / "audit.json")
    write_atomic(path, render_report(run, pictures, audits).encode())
    return path


def render_report(run: RunDirectory, pictures: tuple[Reconstruction, ...], audits: AuditsShown | None = None) -> str:
    """Return the page as HTML."""
    probe, loss = _probe(run.result), _public_loss(run.result)
    return rendered(
        "page.html.j2",
        run=run,
        title=f"Training report: {Path(run.plan.data.source).name}",
        figures=_figures(run, probe),
        hospitals=run.result["hospitals"] if run.result else (),
        epsilon_chart=_epsilon_chart(run),
        loss_chart=_loss_chart(run, loss),
        local_loss_chart=_local_loss_chart(run),
        loss_verdict=None if loss is None else public_loss_verdict(loss, run.plan),
        norm_chart=_norm_chart(run),
        probe_chart=None if probe is None else _probe_chart(probe),
        probe_verdict=None if probe is None else probe_verdict(probe),
        reconstructions=pictures,
        hidden_share=_hidden_share(run.plan),
        statement=run.statement.sections() if run.statement else (),
        audits=audits,
    )


@dataclass(frozen=True)
class Figure:
    """A headline number."""

    value: str
    small: str
    meaning: str


def _figures(run: RunDirectory, probe: ProbeComparison | None) -> list[Figure]:
    figures = [*_spending(run)]
    if probe is not None:
        meaning = f"balanced accuracy of the probe; noise alone reaches {probe.noise_only.value:.3f}"
        figures.append(Figure(f"{probe.trained.value:.3f}", "", meaning))
    done, planned = len(run.rounds), run.plan.federation.rounds
    figures.append(Figure(str(done), "rounds" if done == planned else f"of {planned} rounds", _effort(run)))
    if run.rounds:
        figures.append(Figure(size(run.rounds[-1].bytes_up), "", "masked, sent by each hospital in a round"))
    return figures


def _spending(run: RunDirectory) -> list[Figure]:
    if not run.result:
        return []
    hospitals = run.result["hospitals"]
    if not run.plan.privacy.dp:
        return [Figure("none", "", "guarantee: trained without noise"), _hospitals(run, hospitals)]
    most = max(hospital["epsilon"] for hospital in hospitals)
    return [
        Figure(
            f"\N{GREEK SMALL LETTER EPSILON} {most:.2f}",
            f"of {short(run.plan.privacy.epsilon)}",
            f"the most that a hospital spent, per {run.plan.privacy.unit}, at delta {short(run.plan.privacy.delta)}",
        ),
        _hospitals(run, hospitals),
    ]


def _hospitals(run: RunDirectory, hospitals: list[dict[str, Any]]) -> Figure:
    nominal = sum(hospital["nominal_units"] for hospital in hospitals)
    return Figure(str(len(hospitals)), "hospitals", f"{nominal} nominal {run.plan.privacy.unit}s in all")


def _effort(run: RunDirectory) -> str:
    steps = run.plan.federation.local_steps
    return f"{steps} noisy step{'s' * (steps > 1)} each"


def _epsilon_chart(run: RunDirectory) -> LineChart | None:
    if not run.rounds or not run.plan.privacy.dp:
        return None
    last, allowed = run.rounds[-1], run.plan.privacy.epsilon
    curves = {
        hospital: [(0, 0.0), *((r.round, r.epsilon[hospital]) for r in run.rounds if hospital in r.epsilon)]
        for hospital in sorted(last.epsilon)
    }
    return line_chart(
        curves,
        title="Epsilon spent by each hospital over rounds",
        summary=f"After round {last.round} the most is {max(last.epsilon.values()):.2f}; {allowed:g} is allowed.",
        reference=Reference("allowed", allowed, limit=True),
        from_zero=True,
        width=WIDE,
    )


def _loss_chart(run: RunDirectory, loss: PublicLoss | None) -> LineChart | None:
    curve = [(record.round, record.public_loss) for record in run.rounds]
    if not curve:
        return None
    if loss is None:
        return _over_rounds("Loss on public images", curve, None)
    return _over_rounds("Loss on public images", [(0, loss.start), *curve], Reference("noise alone", loss.noise_only))


def _local_loss_chart(run: RunDirectory) -> LineChart | None:
    shown = [(record.round, *record.local_loss) for record in run.rounds if record.local_loss is not None]
    noise = max((std for _, _, std in shown), default=0.0)
    curve = [(number, value) for number, value, _ in shown]
    return _over_rounds(f"Hospitals' own mean loss, each value with noise of ±{noise:.2g}", curve, None)


def _norm_chart(run: RunDirectory) -> LineChart | None:
    return _over_rounds(
        "Norm of the averaged update", [(record.round, record.update_norm) for record in run.rounds], None
    )


def _over_rounds(title: str, curve: list[tuple[int, float]], reference: Reference | None) -> LineChart | None:
    if not curve:
        return None
    summary = f"From {curve[0][1]:.4g} after round {curve[0][0]} to {curve[-1][1]:.4g} after round {curve[-1][0]}."
    return line_chart({title: curve}, title=title, summary=summary, reference=reference)


def _public_loss(result: Mapping[str, Any] | None) -> PublicLoss | None:
    return PublicLoss(**result["public_loss"]) if result else None


def _probe(result: Mapping[str, Any] | None) -> ProbeComparison | None:
    probe = result["probe"] if result else None
    if probe is None:
        return None
    return ProbeComparison(**{state: Interval(probe[state], *probe["intervals"][state]) for state in PROBE_NAMES})


def _probe_chart(probe: ProbeComparison) -> BarChart:
    intervals = {name: getattr(probe, state) for state, name in PROBE_NAMES.items()}
    return bar_chart(
        {name: (interval.value, interval.low, interval.high) for name, interval in intervals.items()},
        title="Linear probe of the encoder in four states",
        x_label="balanced accuracy",
        summary="; ".join(f"{name} {interval.value:.3f}" for name, interval in intervals.items()),
        main=PROBE_NAMES["trained"],
    )


def _hidden_share(plan: Plan) -> float:
    """Return how much of a picture was hidden from the network that rebuilt it; 0 where none rebuilds."""
    objective = get_objective(plan.objective.name, **plan.objective.options)
    return objective.mask_ratio if isinstance(objective, Reconstructs) else 0.0
