"""The stages of a round, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum

from privfm.errors import ProtocolError

__all__ = ["AnyStage", "SparseStage", "Stage", "blaming", "check_ascending"]


class Stage(StrEnum):
    """What a hospital sends at each: key package, shares, masked vectors, agreement, one share for each peer."""

    ADVERTISE = "advertise"
    SHARE = "share"
    MASK = "mask"
    AGREE = "agree"
    UNMASK = "unmask"


class SparseStage(StrEnum):
    """The same on a sparse graph, where each hospital first draws its neighbours."""

    ADVERTISE = "advertise"
    CHOOSE = "choose"
    SHARE = "share"
    MASK = "mask"
    AGREE = "agree"
    UNMASK = "unmask"


AnyStage = Stage | SparseStage


@contextmanager
def blaming(*names: str, doing: str) -> Iterator[None]:
    """Name the parties to blame when something inside fails that names nobody itself."""
    try:
        yield
    except ProtocolError as error:
        if error.blamed:
            raise
        raise ProtocolError(f"{doing}: {error}", names) from error


def check_ascending(names: Sequence[str]) -> None:
    """Refuse a list in which a name stands twice or out of order.

    Raises:
        ProtocolError: the list has no place in the protocol.
    """
    if list(names) != sorted(set(names)):
        raise ProtocolError("names do not ascend")
