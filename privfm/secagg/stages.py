"""The stages of a round, in order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum

from privfm.errors import ProtocolError

__all__ = ["AnyStage", "SparseStage", "Stage", "blaming", "check_ascending", "some_of"]


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
_SHOWN = 3


@contextmanager
def blaming(*names: str, doing: str) -> Iterator[None]:
    """Name the parties to blame when something inside fails that names nobody itself."""
    try:
        yield
    except ProtocolError as error:
        if error.blamed:
            raise
        raise ProtocolError(f"{doing}: {error}", names) from error


def some_of(names: Collection[str]) -> str:
    """The first few of names that another party chose, so that it does not choose the length of an error.

    >>> some_of(["a", "b"]), some_of([f"n{k}" for k in range(9)])
    ('a, b', 'n0, n1, n2 and 6 more')
    """
    shown = sorted(names)[:_SHOWN]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def check_ascending(names: Sequence[str]) -> None:
    """Refuse a list in which a name stands twice or out of order.

    Raises:
        ProtocolError: the list has no place in the protocol.
    """
    if list(names) != sorted(set(names)):
        raise ProtocolError("names do not ascend")
