"""Files that go from hand to hand: cards, revocations and rosters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privfm.errors import InputError, PrivfmError
from privfm.files import write_new
from privfm.secagg.cards import CARD_LIMIT, Card, Revocation, parse_paper
from privfm.secagg.roster import ROSTER_LIMIT, Roster

__all__ = ["check_free", "naming", "read_limited", "read_paper", "read_roster", "write_paper"]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it."""
    try:
        yield
    except PrivfmError as error:
        raise type(error)(f"{path}: {error}") from error


def read_limited(path: Path, limit: int) -> bytes:
    """At most `limit` bytes and one, so that whoever parses them sees a file that is too long."""
    with path.open("rb") as file:
        return file.read(limit + 1)


def read_paper(path: Path) -> Card | Revocation:
    """The card or the revocation in a file, its signatures checked."""
    with naming(path):
        return parse_paper(read_limited(path, CARD_LIMIT))


def read_roster(path: Path) -> Roster:
    """The roster in a file."""
    with naming(path):
        return Roster.from_json(read_limited(path, ROSTER_LIMIT))


def check_free(*paths: Path) -> None:
    """Refuse places that are taken, before anything is asked or computed."""
    for path in paths:
        if path.exists() or path.is_symlink():
            raise InputError(f"{path}: is there already and is never overwritten; name another file with --out")
        if not path.parent.is_dir():
            raise InputError(f"{path.parent}: no such folder; make it first, or name another file with --out")


def write_paper(path: Path, content: bytes) -> None:
    """Put a public file where there is none."""
    try:
        write_new(path, content)
    except FileExistsError:
        check_free(path)
        raise
