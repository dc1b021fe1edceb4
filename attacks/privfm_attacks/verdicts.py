"""What an audit says: a verdict, what it rests on, and what it does not mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = ["MUST_HOLD", "AuditResult", "Finding", "Picture", "Plot", "Verdict", "histogram", "not_done"]

MUST_HOLD = ("mechanism", "ledgers")
"""Audits that must have found nothing; of others it is enough that they found no leak."""


class Verdict(StrEnum):
    """LEAK: something is known that must not be. INCONCLUSIVE: the audit could not have seen what it looks for."""

    LEAK = "LEAK"
    NO_LEAK_DETECTED = "NO LEAK DETECTED"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Finding:
    """One check.

    Args:
        check: its name.
        passed: whether what must hold held.
        detail: what was measured and what was expected, in a line.
    """

    check: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Plot:
    """Curves over one axis.

    Args:
        title: what is shown.
        x_label, y_label: the axes.
        summary: what to see in it, in a sentence.
        curves: points by name.
        band: of the first curve, its interval: (x, low, high).
    """

    title: str
    x_label: str
    y_label: str
    summary: str
    curves: dict[str, list[tuple[float, float]]]
    band: tuple[tuple[float, float, float], ...] = ()

    @property
    def finite(self) -> bool:
        points = chain(self.band, *self.curves.values())
        return all(math.isfinite(number) for point in points for number in point)


@dataclass(frozen=True)
class Picture:
    """An image and what an attack made of it, as `data:` addresses of PNGs."""

    name: str
    original: str
    rebuilt: str


def histogram(samples: Mapping[str, Float[np.ndarray, " _"]], bins: int = 30) -> dict[str, list[tuple[float, float]]]:
    """Return how many of each sample fall where, as outlines of bars over common bins."""
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins)
    outlines = {}
    for name, values in samples.items():
        counts = np.repeat(np.histogram(values, edges)[0], 2)
        outlines[name] = [(float(x), float(y)) for x, y in zip(np.repeat(edges, 2)[1:-1], counts, strict=True)]
    return outlines


@dataclass(frozen=True)
class AuditResult:
    """One audit's outcome.

    Args:
        name: as typed after `--only`.
        verdict: of all findings together.
        sentence: the outcome in a line.
        attacker: what was assumed of the attacker, in a sentence.
        null_means: what finding nothing does not mean, in a sentence.
        findings: every check.
        figures: numbers, for programs.
        plots: what people would look at rather than read.
        pictures: originals beside what an attack made of them; of nobody's images alone.
        local: whether images of patients were read in the clear, so that figures stay at the hospital.
        made: when, in ISO 8601; empty until it is kept.
        done: whether it was carried out; if not, the sentence says why, and the verdict is INCONCLUSIVE.
        quick: whether less was tried than could be.
        advice: what to do about a leak.
    """

    name: str
    verdict: Verdict
    sentence: str
    attacker: str
    null_means: str
    findings: tuple[Finding, ...]
    figures: dict[str, float] = field(default_factory=dict)
    plots: tuple[Plot, ...] = ()
    pictures: tuple[Picture, ...] = ()
    local: bool = False
    made: str = ""
    done: bool = True
    quick: bool = False
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def yields_to(self, newer: AuditResult) -> bool:
        """Whether a newer result of the same audit takes this one's place.

        What was not carried out takes no result's place, but for that of one that found nothing of what must hold.
        A leak yields to a conclusive result alone, and not to one that tried less.
        """
        if self.verdict is Verdict.LEAK:
            return newer.done and newer.verdict is not Verdict.INCONCLUSIVE and newer.quick <= self.quick
        return newer.done or not self.done or self.name in MUST_HOLD

    def finite(self) -> AuditResult:
        """Return this without figures and plots that hold no number, which say nothing, and are all that it rests on.

        A leak stays one, since checks found it; another verdict is taken back.
        """
        figures = {name: value for name, value in self.figures.items() if math.isfinite(value)}
        plots = tuple(plot for plot in self.plots if plot.finite)
        if len(figures) == len(self.figures) and len(plots) == len(self.plots):
            return self
        if self.verdict is Verdict.LEAK:
            return replace(self, figures=figures, plots=plots)
        what = next((name for name in self.figures if name not in figures), "what it shows")
        return not_done(self.name, f"{what} is not finite; a model's file is damaged", local=self.local)

    def shareable(self) -> AuditResult:
        """What may leave the hospital: all of it, or of a local audit its verdict and the checks that failed."""
        if not self.local:
            return self
        if not self.done:
            return replace(self, sentence="not done; why is told at the hospital, in hospitals/audit.json")
        failed = ", ".join(dict.fromkeys(each.check for each in self.findings if not each.passed))
        sentence = "judged at the hospital, on patients' images; figures stay there, in hospitals/audit.json" + (
            f"; not passed: {failed}" if failed else ""
        )
        return replace(self, sentence=sentence, findings=(), figures={}, plots=(), pictures=())


def not_done(name: str, why: str, *, local: bool = False) -> AuditResult:
    """Return what is told of an audit that was not carried out.

    Args:
        why: in a line.
        local: whether `why` may name what is a hospital's own.
    """
    return AuditResult(
        name=name,
        verdict=Verdict.INCONCLUSIVE,
        sentence=f"not done: {why.encode('utf-8', 'backslashreplace').decode()}",
        attacker="none was tried",
        null_means="It shows nothing.",
        findings=(),
        local=local,
        done=False,
    )
