"""The lifetime cap of a ledger: asked before a run is put on record, and before every charge."""

from __future__ import annotations

from privfm.dp.filter import RdpFilter
from privfm.dp.journal import Journal
from privfm.dp.spending import Declaration
from privfm.errors import BudgetExceeded

__all__ = ["Capped"]


class Capped(Journal):
    """The part of a ledger that concerns its cap."""

    def set_cap(self, cap: RdpFilter) -> None:
        """Set the first lifetime cap, or tighten the one in force.

        A cap that is set after releases is proved only if it was not chosen by looking at them.

        Raises:
            ValueError: another order or delta than the cap in force, or a larger epsilon.
        """
        with self._mutex:
            old = self._spending.cap
            if old is not None and (cap.order, cap.delta) != (old.order, old.delta):
                raise ValueError(f"cap={cap}: a cap keeps its order and delta ({old.order:g}, {old.delta:g}) for life")
            if old is not None and cap.epsilon > old.epsilon:
                raise ValueError(f"epsilon={cap.epsilon:g}: a cap can only be lowered; it is {old.epsilon:g}")
            self._write("cap", {"cap": cap.to_json()})

    def check_cap(self, declaration: Declaration, rounds: int) -> None:
        """Raise BudgetExceeded when the lifetime cap has no room for so many rounds of a run; nothing is written."""
        cap = self._spending.cap
        if cap is None:
            return
        if not declaration.private:
            raise BudgetExceeded(
                f"{self.path}: a run without noise, or with injected coins, never fits under a lifetime cap"
            )
        if not self.private:
            raise BudgetExceeded(
                f"{self.path}: nothing fits under a lifetime cap after a run without noise, or with injected coins; "
                "use the images that it saw for tests alone"
            )
        proposed = (event.repeated(rounds) for event in declaration.per_round)
        if not cap.admits([*self._spending.events(), *proposed]):
            fitting = cap.rounds_that_fit(declaration.per_round, self._spending.events())
            raise BudgetExceeded(
                f"{self.path}: the lifetime cap (epsilon {cap.epsilon:g} at delta {cap.delta:g}) has room for "
                f"{fitting} more rounds of this kind, not {rounds}"
            )
