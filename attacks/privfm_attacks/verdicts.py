"""What an audit says: a verdict, what it rests on, and what it does not mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["AuditResult", "Finding", "Verdict"]


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
        series: rows of numbers, for drawings.
    """

    name: str
    verdict: Verdict
    sentence: str
    attacker: str
    null_means: str
    findings: tuple[Finding, ...]
    figures: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
