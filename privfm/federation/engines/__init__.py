"""Engines carry bytes between the coordinator and the hospitals; what the bytes mean is the same under all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from privfm.secagg import Stage

__all__ = ["Engine"]


@runtime_checkable
class Engine(Protocol):
    """A way to reach hospitals."""

    def exchange(self, stage: Stage, outgoing: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """Send each hospital its message of a stage, and yield answers as they arrive; a hospital may stay silent."""
        ...
