"""Private identity files: made once, never overwritten, and refused while others on the machine can read them."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from privfm.errors import InputError
from privfm.files import write_new
from privfm.secagg.cards import Card
from privfm.secagg.identity import IDENTITY_LIMIT, SALT_BYTES, Identity
from privfm.secagg.roster import Member
from privfm_cli.papers import check_free, naming, read_limited, read_paper, write_paper
from privfm_cli.passphrases import passphrase_to_open

__all__ = [
    "OpenIdentity",
    "beside",
    "default_path",
    "generate",
    "is_identity",
    "open_identity",
    "public_half",
    "write_pair",
]

OTHERS = 0o077


@dataclass(frozen=True)
class OpenIdentity:
    """An identity, and whether its file is sealed."""

    identity: Identity
    sealed: bool


def is_identity(path: Path) -> bool:
    """Whether a file claims to hold a private identity."""
    return Identity.is_file(read_limited(path, IDENTITY_LIMIT))


def open_identity(path: Path, passphrase_file: Path | None) -> OpenIdentity:
    """The identity in a file, asking for its passphrase when it has one.

    Raises:
        InputError: others can read the file, it is of another kind, or the passphrase is wrong.
    """
    with path.open("rb") as file:
        mode, pem = os.fstat(file.fileno()).st_mode, file.read(IDENTITY_LIMIT + 1)
    with naming(path):
        if not Identity.is_file(pem):
            raise InputError("is no identity file; give the one that privfm keys new wrote")
        _check_private(path, mode)
        sealed = Identity.is_sealed(pem)
    passphrase = passphrase_to_open(path, passphrase_file) if sealed else None
    with naming(path):
        return OpenIdentity(Identity.from_pem(pem, passphrase), sealed)


def _check_private(path: Path, mode: int) -> None:
    if mode & OTHERS:
        raise InputError(
            f"others on this machine can read this key, so it is not used; run: chmod 600 {shlex.quote(str(path))} "
            "(and privfm keys rotate, if somebody may have read it)"
        )


def public_half(path: Path, passphrase_file: Path | None) -> Member:
    """The name and public key in an identity file or a card."""
    if is_identity(path):
        identity = open_identity(path, passphrase_file).identity
        return Member(identity.name, identity.public)
    paper = read_paper(path)
    if not isinstance(paper, Card):
        raise InputError(f"{path}: is a revocation; give an identity file or a card")
    return Member(paper.name, paper.key)


def generate(name: str) -> Identity:
    """A new identity out of the operating system's entropy.

    Raises:
        InputError: no member of a roster may have that name.
    """
    try:
        identity = Identity.generate(name, os.urandom(32))
        Member(name, identity.public)
    except ValueError as error:
        raise InputError(str(error)) from error
    return identity


def default_path(name: str) -> Path:
    """NAME.pem in the current folder, if that is a plain file name."""
    if "/" in name or name.startswith((".", "-")):
        raise InputError(f"name={name!r}: makes no good file name; name the file with --out FILE")
    return Path(f"{name}.pem")


def beside(path: Path, ending: str) -> Path:
    """The place of a file that belongs to an identity file: north.pem -> north.card.json."""
    return path.with_name(path.name.removesuffix(".pem") + ending)


def write_pair(path: Path, identity: Identity, passphrase: bytes | None, card: Card) -> Path:
    """Write an identity and, beside it, its card, whose place comes back; both or neither.

    Raises:
        InputError: one of the two places is taken, or the file system lets everybody read everything.
    """
    where = beside(path, ".card.json")
    check_free(path, where)
    _write_private(path, identity.to_pem(passphrase, os.urandom(SALT_BYTES)))
    try:
        write_paper(where, card.to_json())
    except BaseException:
        path.unlink()
        raise
    return where


def _write_private(path: Path, pem: bytes) -> None:
    try:
        write_new(path, pem, mode=0o600)
    except FileExistsError:
        check_free(path)
        raise
    if path.stat().st_mode & OTHERS:
        path.unlink()
        raise InputError(f"{path}: this file system lets others read every file; name one elsewhere with --out")
