"""A file that only grows: hash-chained entries in SQLite, one writer, every append durable before it returns.

What keeps it honest:

* Each entry's hash covers its number, kind, body and the previous hash, so an entry that was changed, dropped or put
  in between breaks the chain. What a chain cannot show, a file cut back to an earlier whole state, its peers can:
  see `Ledger.next_counter`.
* Triggers refuse UPDATE and DELETE, for whoever opens the file with another program and means well.
* A writer keeps SQLite's reserved lock for as long as it has the file open. A second writer is refused at once, readers
  are not, and the lock dies with its process.
* Rollback journal with synchronous=EXTRA: a commit that returned survives a power cut, the journal's removal from the
  folder included. Not write-ahead logging, under which the newest entries live in a second file that a copy leaves
  behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privfm.errors import LedgerError, LedgerUnavailable

__all__ = ["GENESIS_PREVIOUS", "ChainFile", "Entry", "entry_hash"]

GENESIS_PREVIOUS = bytes(32)

_DOMAIN = b"privfm/v1/ledger\0"
_APPLICATION_ID = 0x50764C67  # "PvLg", in the file's header
_FORMAT = 1
_READER_PATIENCE_MS = 10_000  # how long a commit waits for somebody who is reading

_SCHEMA = (
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_FORMAT}",
    "CREATE TABLE entries (sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, hash BLOB NOT NULL)",
    "CREATE TABLE vectors (sequence INTEGER PRIMARY KEY, vector BLOB NOT NULL)",
    "CREATE TRIGGER entries_keep BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    "CREATE TRIGGER entries_stay BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    "CREATE TRIGGER vectors_keep BEFORE UPDATE ON vectors BEGIN SELECT RAISE(ABORT, 'append-only'); END",
)

_INSERT = "INSERT INTO entries (sequence, kind, body, hash) VALUES (?, ?, ?, ?)"
_SELECT_ALL = "SELECT sequence, kind, body, hash FROM entries ORDER BY sequence"
_SELECT_NEWEST = "SELECT sequence, hash FROM entries ORDER BY sequence DESC LIMIT 1"


@dataclass(frozen=True)
class Entry:
    """One link: `body` is plain data, `hash` is 32 bytes."""

    sequence: int
    kind: str
    body: dict[str, Any]
    hash: bytes


def entry_hash(sequence: int, previous: bytes, kind: str, body: str) -> bytes:
    """SHA-256 over the domain and the length-prefixed fields.

    >>> entry_hash(0, GENESIS_PREVIOUS, "ab", "c") == entry_hash(0, GENESIS_PREVIOUS, "a", "bc")
    False
    """
    digest = hashlib.sha256(_DOMAIN)
    for field in (sequence.to_bytes(8, "big"), previous, kind.encode(), body.encode()):
        digest.update(len(field).to_bytes(8, "big"))
        digest.update(field)
    return digest.digest()


def _canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


class ChainFile:
    """The open file. Use `create` or `open`; both check every link."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self._connection = connection
        self._head = GENESIS_PREVIOUS
        self._length = 0
        self._shut = False

    @classmethod
    def create(cls, path: Path, genesis: dict[str, Any]) -> None:
        """Make the file with its first entry, whole or not at all.

        Raises:
            LedgerError: the path exists already, or the file could not be written.
        """
        with _one_line(path, "could not be created"):
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")  # mode 0600
            unfinished = Path(name)
            try:
                os.close(handle)
                _write_first(unfinished, genesis)
                _publish(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> tuple[ChainFile, tuple[Entry, ...]]:
        """The file, locked for writing unless `read_only`, and all its entries.

        Raises:
            LedgerError: missing, no ledger, damaged, or open in another process.
        """
        if not path.is_file():
            raise LedgerError(f"{path}: no such ledger; restore it, for a new one would forget what was spent")
        with _one_line(path, "cannot be read as a ledger"):
            chain = cls(path, _connect(path), read_only=read_only)
        try:
            with _one_line(path, "cannot be read as a ledger"):
                chain._configure()
            return chain, chain.reload()
        except BaseException:
            chain.shut()
            raise

    def _configure(self) -> None:
        if self.read_only:
            self._connection.execute("PRAGMA query_only = ON")
        else:
            self._lock()
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION_ID:
            raise LedgerError(f"{self.path}: not a privfm ledger")
        if version != _FORMAT:
            raise LedgerError(f"{self.path}: ledger format {version}; this privfm reads format {_FORMAT}")

    def _lock(self) -> None:
        try:
            self._connection.execute("PRAGMA busy_timeout = 0")  # a writer stays for long; waiting is for readers
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise LedgerUnavailable(f"{self.path}: in use by another process; wait until that has ended") from None
            raise
        self._connection.execute(f"PRAGMA busy_timeout = {_READER_PATIENCE_MS}")

    @property
    def head(self) -> bytes:
        """Hash of the newest entry."""
        return self._head

    @property
    def length(self) -> int:
        """Number of entries."""
        return self._length

    def reload(self) -> tuple[Entry, ...]:
        """All entries as they are on disk now, every link checked.

        Raises:
            LedgerError: naming the first entry that does not fit.
        """
        with _one_line(self.path, "cannot be read as a ledger"):
            problem = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            rows = self._connection.execute(_SELECT_ALL).fetchall()
        if problem != "ok":
            detail = " ".join(str(problem).split())
            raise LedgerError(f"{self.path}: damaged ({detail}); restore a backup and recover it against the peers")
        entries = tuple(self._checked(rows))
        if not entries or entries[0].kind != "genesis":
            raise LedgerError(f"{self.path}: has no first entry; restore a backup")
        self._head, self._length = entries[-1].hash, len(entries)
        return entries

    def _checked(self, rows: list[tuple[Any, ...]]) -> Iterator[Entry]:
        previous = GENESIS_PREVIOUS
        for expected, (sequence, kind, body, stored) in enumerate(rows):
            whole = sequence == expected and isinstance(kind, str) and isinstance(body, str)
            if not whole or entry_hash(sequence, previous, kind, body) != stored:
                raise LedgerError(f"{self.path}: entry {expected} breaks the chain; restore a backup and recover it")
            yield Entry(sequence, kind, json.loads(body), stored)
            previous = stored

    def append(self, kind: str, body: dict[str, Any], *, keep: bytes | None = None, drop: int | None = None) -> Entry:
        """Add one entry; it is on disk when this returns.

        Args:
            keep: a vector to store under this entry's number, in the same transaction.
            drop: number of the entry whose vector is no longer needed.

        Raises:
            LedgerError: it could not be made durable; then the file is as it was.
        """
        if self.read_only:
            raise LedgerError(f"{self.path}: open for reading only")
        text = _canonical(body)
        entry = Entry(self._length, kind, json.loads(text), entry_hash(self._length, self._head, kind, text))
        full = "could not be written; free some space and resume; this entry is not in it, those before are"
        with _one_line(self.path, full, LedgerUnavailable):
            try:
                self._write(entry, text, keep, drop)
            except BaseException:
                self._undo()
                raise
        self._head, self._length = entry.hash, entry.sequence + 1
        with _one_line(self.path, "was written, but its lock was lost"):
            self._lock()
        return entry

    def _write(self, entry: Entry, text: str, keep: bytes | None, drop: int | None) -> None:
        if not self._connection.in_transaction:  # an earlier failure gave the lock up
            self._lock()
        newest = self._connection.execute(_SELECT_NEWEST).fetchone()
        if newest != (self._length - 1, self._head):
            raise LedgerError(f"{self.path}: was written by another process meanwhile; open it again")
        self._connection.execute(_INSERT, (entry.sequence, entry.kind, text, entry.hash))
        if keep is not None:
            self._connection.execute("INSERT INTO vectors (sequence, vector) VALUES (?, ?)", (entry.sequence, keep))
        if drop is not None:
            self._connection.execute("DELETE FROM vectors WHERE sequence = ?", (drop,))
        self._connection.execute("COMMIT")

    def _undo(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def vector(self, sequence: int) -> bytes | None:
        """The vector stored with entry `sequence`, if it is still kept."""
        with _one_line(self.path, "cannot be read as a ledger"):
            row = self._connection.execute("SELECT vector FROM vectors WHERE sequence = ?", (sequence,)).fetchone()
        return None if row is None else bytes(row[0])

    def shut(self) -> None:
        """Give the lock and the file back; doing it twice does no harm."""
        if not self._shut:
            self._shut = True
            self._undo()
            self._connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
    )
    connection.execute(f"PRAGMA busy_timeout = {_READER_PATIENCE_MS}")
    connection.execute("PRAGMA synchronous = EXTRA")
    return connection


def _write_first(path: Path, genesis: dict[str, Any]) -> None:
    with contextlib.closing(_connect(path)) as connection:
        text = _canonical(genesis)
        connection.execute("BEGIN EXCLUSIVE")
        for statement in _SCHEMA:
            connection.execute(statement)
        row = (0, "genesis", text, entry_hash(0, GENESIS_PREVIOUS, "genesis", text))
        connection.execute(_INSERT, row)
        connection.execute("COMMIT")


def _publish(unfinished: Path, path: Path) -> None:
    """Give a finished file its name, unless the name is taken, durably."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise LedgerError(f"{path}: exists already; open it, for a new ledger would forget what was spent") from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _one_line(path: Path, problem: str, kind: type[LedgerError] = LedgerError) -> Iterator[None]:
    """Turn what SQLite or the file system reports into a LedgerError; SQLite may quote damaged text that is no text."""
    try:
        yield
    except (sqlite3.Error, OSError, OverflowError, UnicodeDecodeError) as error:
        raise kind(f"{path}: {problem} ({' '.join(str(error).split())})") from None
