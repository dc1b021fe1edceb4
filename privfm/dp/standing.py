"""Where a ledger stands with its peers: what it shows them, what it saw of them, and how it makes up for going back."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from privfm.dp.account import COUNTER_LIMIT, next_epoch
from privfm.dp.journal import Journal, of_32_bytes
from privfm.errors import LedgerError

__all__ = ["Standing"]


class Standing(Journal):
    """The part of a ledger that concerns its peers: counters, what peers showed, and recovery after a backup."""

    def next_counter(self) -> int:
        """A counter that this ledger never gave out before: one for each time something is sent.

        Its entry carries a nonce, so that the heads of two copies of one ledger part even within a second.
        """
        with self._mutex:
            self._write("counter", {"counter": self._spending.counter + 1, "nonce": secrets.token_hex(16)})
            return self._spending.counter

    def remember_peers(self, peers: Mapping[str, tuple[int, bytes]]) -> None:
        """Keep what peers showed.

        Raises:
            LedgerError: a peer whose counter went back, or who shows one counter with two heads: its ledger was
                restored from a backup or lives twice. Nothing is kept of this call then.
        """
        with self._mutex:
            news = {name: shown for name, shown in sorted(peers.items()) if self._check_peer(name, *shown)}
            if news:
                body = {name: [counter, of_32_bytes("head", head).hex()] for name, (counter, head) in news.items()}
                self._write("peers", {"peers": body})

    def _check_peer(self, name: str, counter: int, head: bytes) -> bool:
        if name not in self.peers_seen():
            return True
        seen, seen_head = self.peers_seen()[name]
        if counter < seen or (counter == seen and head != seen_head):
            raise LedgerError(
                f"{name}: its ledger went back to counter {counter} after {seen}; it must recover it first"
            )
        return counter > seen

    def refuse_peers(self, names: Sequence[str]) -> None:
        """Refuse peers whose ledgers were seen to go back, until they show a counter of the epoch after."""
        with self._mutex:
            news = sorted(set(names) & set(self._spending.peers) - self._spending.refused)
            if news:
                self._write("refused", {"peers": news})

    def recover(self, run: str, counter: int) -> dict[str, int]:
        """Make up for a ledger that was restored from a backup: charge what was lost, open the next epoch.

        Whatever was released took two counters (to advertise, and to mask) beyond the one of the last charge that this
        ledger knows, so half of that gap bounds what was lost, also when the ledger went on counting since. So do the
        rounds that a run declared, beyond which the lost ledger charged nothing either. Nobody knows whose rounds they
        were, so `run` and every other run on record that is not over are charged as if all of them were its own. The
        charge is written even where it exceeds what is left of a run or the cap, because it happened.

        Args:
            run: the run that was going on; declare it first with `open_run` if its declaration was lost too, and
                likewise every other run that began after the backup.
            counter: the highest counter that any peer has seen of this hospital, at most 2^63.

        Returns:
            Rounds charged to each run; nothing if nothing can have been lost, and then nothing is written.
        """
        if counter > COUNTER_LIMIT:
            raise ValueError(f"counter={counter}: need at most 2^63")
        with self._mutex:
            self._record(run)
            lost = self.lost_rounds(counter)
            if not lost:
                return {}
            open_runs = (each for each in self.runs() if each.declaration.run == run or not each.over)
            charged = {each.declaration.run: min(lost, each.declaration.most_rounds) for each in open_runs}
            others = {name: rounds for name, rounds in charged.items() if name != run}
            newest = max(counter, self._spending.counter)
            body = {"run": run, "rounds": charged[run], "others": others, "counter": next_epoch(newest)}
            self._write("recovered", body)
            return charged
