"""That somebody asked out: written down for ever, and nothing is refunded for it."""

from __future__ import annotations

from typing import Literal

from privfm.dp.journal import Journal

__all__ = ["AskedOut"]


class AskedOut(Journal):
    """The part of a ledger that concerns patients, or the hospital itself, who asked out of a run."""

    def note_asked_out(self, run: str, what: Literal["patient", "hospital"]) -> None:
        """Write down that a patient asked out of `run`, or the hospital as a whole. Charges stay as they are.

        The entry has no identifier: a ledger is shown to others.

        Raises:
            LedgerError: the run is not on record.
        """
        if what not in ("patient", "hospital"):
            raise ValueError(f"what={what!r}: must be 'patient' or 'hospital'")
        with self._mutex:
            self._record(run)
            self._write("forgotten", {"run": run, "what": what})
