"""What a run tells whoever watches it. Every method does nothing by default."""

from __future__ import annotations

from privfm.federation.records import RoundRecord

__all__ = ["Observer"]


class Observer:
    """Hears of a run's progress; holds nothing that a hospital keeps to itself."""

    def stage(self, text: str) -> None:
        """A stage of the run begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` parts of `what` are finished."""

    def round_started(self, number: int, rounds: int) -> None:
        """Round `number` of `rounds` begins, counted from 1."""

    def hospital_finished(self, number: int, hospital: str, epsilon: float) -> None:
        """A hospital released its update of the round, and has spent `epsilon` of this run by now."""

    def round_finished(self, record: RoundRecord) -> None:
        """The round's sum was unmasked and the next model stored."""

    def warn(self, text: str) -> None:
        """Something a person should know, in one line."""
