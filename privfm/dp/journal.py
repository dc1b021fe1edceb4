"""An account with its file: what is written is durable first, and taken into account then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privfm.dp.account import Account
from privfm.dp.chain import ChainFile
from privfm.dp.spending import Spending

__all__ = ["Clock", "Journal", "of_32_bytes", "utc_now"]

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


class Journal(Account):
    """The open file of an account.

    Args:
        chain: the file, open.
        spending: what its entries add up to.
        clock: written down for people to read; nothing is decided by it.
    """

    def __init__(self, chain: ChainFile, spending: Spending, clock: Clock) -> None:
        super().__init__(spending)
        self._chain = chain
        self._clock = clock
        self._mutex = threading.RLock()

    def shut(self) -> None:
        """Close the file and let others write. (`close` ends a charge.)"""
        with self._mutex:
            self._chain.shut()

    @property
    def path(self) -> Path:
        """The file."""
        return self._chain.path

    def head(self) -> bytes:
        """Hash of the newest entry, 32 bytes: what peers remember of this ledger."""
        return self._chain.head

    def _write(self, kind: str, body: dict[str, Any], *, keep: bytes | None = None, drop: int | None = None) -> None:
        stamped = {**body, "at": self._clock().isoformat(timespec="seconds")}
        self._spending.apply(self._chain.append(kind, stamped, keep=keep, drop=drop))


def of_32_bytes(name: str, value: bytes) -> bytes:
    """Return `value`; ValueError when it is not 32 bytes."""
    if not isinstance(value, bytes) or len(value) != 32:
        raise ValueError(f"{name}={type(value).__name__} of {len(value)}: must be 32 bytes")
    return value
