"""Passphrases of identity files: asked for on a terminal, without echo, or read from a file."""

from __future__ import annotations

import getpass
import shlex
import sys
import unicodedata
from pathlib import Path

from privfm.errors import InputError
from privfm_cli.console import say

__all__ = ["SHORTEST", "passphrase_to_open", "passphrase_to_seal"]

SHORTEST = 8
"""Characters of a passphrase that seals a new file."""

_LONGEST = 1024


def passphrase_to_open(path: Path, file: Path | None) -> bytes:
    """The passphrase of the sealed file at `path`.

    Raises:
        InputError: there is nobody to ask, or `file` holds none.
    """
    if file is not None:
        return _encoded(_read(file))
    _check_terminal(f"{path}: is sealed, and there is no terminal to ask on; add --passphrase-file FILE")
    return _encoded(_ask(f"Passphrase of {path}: "))


def passphrase_to_seal(path: Path, file: Path | None, *, none: bool) -> bytes | None:
    """The passphrase for a new file at `path`; None when it is to lie open.

    Raises:
        InputError: too short, the two that were typed differ, or there is nobody to ask.
    """
    if none:
        return None
    if file is not None:
        return _encoded(_long_enough(_read(file)))
    _check_terminal(
        "no terminal to ask for a passphrase on; add --passphrase-file FILE, or --no-passphrase for a key that "
        "whoever gets the file can use"
    )
    typed = _long_enough(_ask(f"New passphrase for {path}: "))
    if _ask("The same again: ") != typed:
        raise InputError("the two passphrases differ; nothing was written, so try again")
    return _encoded(typed)


def _check_terminal(otherwise: str) -> None:
    if not sys.stdin.isatty():
        raise InputError(otherwise)


def _ask(prompt: str) -> str:
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise InputError("no passphrase was typed; nothing was written") from None


def _long_enough(passphrase: str) -> str:
    if len(passphrase) < SHORTEST:
        raise InputError(f"passphrase: need {SHORTEST} characters or more; several words make a good one")
    return passphrase


def _encoded(passphrase: str) -> bytes:
    """Bytes that do not depend on how a keyboard composes an accent."""
    if not passphrase:
        raise InputError("passphrase: is empty")
    return unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogateescape")


def _read(file: Path) -> str:
    with file.open("rb") as handle:
        data = handle.read(_LONGEST + 1)
    if file.is_file() and file.stat().st_mode & 0o077:
        quoted = shlex.quote(str(file))
        say(f"privfm: warning: {file}: others on this machine can read this passphrase; run: chmod 600 {quoted}")
    lines = data.splitlines()
    if len(data) > _LONGEST or len(lines) != 1 or not lines[0]:
        raise InputError(f"{file}: need one line with the passphrase and nothing else, at most {_LONGEST} bytes")
    return lines[0].decode("utf-8", "surrogateescape")
