"""What audits of a run found, from audit.json, for the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privfm.dp.statement import Verdict
from privfm.errors import RunError
from privfm.report.charts import LineChart, line_chart

__all__ = ["AuditShown", "read_audits"]

MOST_BYTES = 16 << 20
MOST_POINTS = 2_000
"""Of a curve; more could not be told apart on a page."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Curve = Annotated[list[tuple[Number, Number]], Field(max_length=MOST_POINTS)]
Image = Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/]+=*$")]


class _Read(BaseModel):
    """A part of the file; what programs alone read is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Finding(_Read):
    """One check of an audit."""

    check: str
    passed: bool
    detail: str


class _Plot(_Read):
    title: str
    x_label: str
    y_label: str
    summary: str
    curves: Annotated[dict[str, Curve], Field(min_length=1, max_length=16)]
    band: Annotated[tuple[tuple[Number, Number, Number], ...], Field(max_length=MOST_POINTS)] = ()


class Picture(_Read):
    """An image and what an attack made of it."""

    name: str
    original: Image
    rebuilt: Image


class _Audit(_Read):
    name: str
    verdict: Verdict
    sentence: str
    attacker: str
    null_means: str
    made: str
    advice: str = ""
    findings: Annotated[tuple[Finding, ...], Field(max_length=2_000)]
    plots: Annotated[tuple[_Plot, ...], Field(max_length=16)] = ()
    pictures: Annotated[tuple[Picture, ...], Field(max_length=32)] = ()


Lines = Annotated[tuple[str, ...], Field(max_length=100)]


class _Audits(_Read):
    audits: Annotated[tuple[_Audit, ...], Field(max_length=16)]
    notices: Lines = ()
    left_out: Lines = ()


@dataclass(frozen=True)
class AuditShown:
    """One audit as the page shows it."""

    name: str
    verdict: Verdict
    sentence: str
    attacker: str
    null_means: str
    made: str
    advice: str
    findings: tuple[Finding, ...]
    charts: tuple[LineChart, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class AuditsShown:
    """All of them, and what a reader should know of the whole."""

    audits: tuple[AuditShown, ...]
    remarks: tuple[str, ...]

    @property
    def leaks(self) -> tuple[str, ...]:
        """Audits that found one."""
        return tuple(each.name for each in self.audits if each.verdict == "LEAK")


def read_audits(path: Path) -> AuditsShown | None:
    """Return what `path` tells; None where no audit was made.

    Raises:
        RunError: it is not what an audit writes.
    """
    if not path.exists():
        return None
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("too large")
        read = _Audits.model_validate_json(path.read_bytes())
        shown = tuple(_shown(audit) for audit in read.audits)
    except (ValidationError, ValueError, OSError, OverflowError, RecursionError) as error:
        raise RunError(f"{path}: not what an audit writes ({type(error).__name__}); run privfm audit again") from None
    left_out = tuple(f"Left out for want of time: {line}." for line in read.left_out)
    return AuditsShown(shown, (*read.notices, *left_out))


def _shown(audit: _Audit) -> AuditShown:
    charts = tuple(
        line_chart(
            plot.curves,
            title=plot.title,
            summary=plot.summary,
            x_label=plot.x_label,
            y_label=plot.y_label,
            band=plot.band,
        )
        for plot in audit.plots
    )
    return AuditShown(
        audit.name,
        audit.verdict,
        audit.sentence,
        audit.attacker,
        audit.null_means,
        audit.made[:10],
        audit.advice,
        audit.findings,
        charts,
        audit.pictures,
    )
