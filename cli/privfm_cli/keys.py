"""`privfm keys`: a hospital's own signing key, and what it hands to whoever makes the roster."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privfm_cli.console import show, show_json

if TYPE_CHECKING:
    from privfm.secagg.cards import Card, Revocation

__all__ = ["commands"]

commands = typer.Typer(no_args_is_help=True, help="Make, show, change and revoke a hospital's own signing key.")

Json = Annotated[bool, typer.Option("--json", help="Write one JSON object.")]
IdentityFile = Annotated[Path, typer.Argument(metavar="FILE", show_default=False)]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="Its one line is the passphrase.", show_default="ask"),
]
NoPassphrase = Annotated[
    bool, typer.Option("--no-passphrase", help="Leave the new file open to whoever gets hold of it (mode 0600).")
]


@dataclass(frozen=True)
class _Files:
    """Where a new key went."""

    identity: Path
    card: Path
    sealed: bool


@commands.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The private file.", show_default="NAME.pem")
    ] = None,
    passphrase_file: PassphraseFile = None,
    no_passphrase: NoPassphrase = False,
    as_json: Json = False,
) -> None:
    """Make a hospital's key: a private identity file, and a public card beside it.

    NAME is the hospital's in the roster. The identity file is readable by its owner alone and sealed with a
    passphrase. The card goes to whoever makes the roster, and the fingerprint is read to them by telephone. No file is
    ever overwritten.
    """
    from privfm.secagg.cards import Card
    from privfm_cli.identity_files import beside, default_path, generate, write_pair
    from privfm_cli.papers import check_free
    from privfm_cli.passphrases import passphrase_to_seal

    identity, path = generate(name), out or default_path(name)
    check_free(path, beside(path, ".card.json"))
    _one_of(passphrase_file, no_passphrase)
    passphrase = passphrase_to_seal(path, passphrase_file, none=no_passphrase)
    card = Card.of(identity)
    files = _Files(path, write_pair(path, identity, passphrase, card), sealed=passphrase is not None)
    _show_made(card, files, {}, as_json=as_json)
    if not as_json:
        revoke = f"privfm keys revoke {shlex.quote(str(path))}"
        show(f"  Back up {path}, or make a revocation for the day it is lost: {revoke}")


@commands.command("show")
def show_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Show whose key a file holds, and its fingerprint.

    FILE is an identity file, a card or a revocation. Signatures are checked, and the private half is never shown. An
    identity file that others on the machine can read is refused.
    """
    from privfm.secagg.cards import Card
    from privfm_cli.identity_files import is_identity, open_identity
    from privfm_cli.papers import read_paper

    if is_identity(file):
        opened = open_identity(file, passphrase_file)
        _show_found(Card.of(opened.identity), "identity", {"sealed": opened.sealed}, as_json=as_json)
        return
    paper = read_paper(file)
    _show_found(paper, "card" if isinstance(paper, Card) else "revocation", {}, as_json=as_json)


@commands.command("rotate")
def rotate(
    file: IdentityFile,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="NEW", help="The new private file.", show_default="FILE.XXXXX.pem"),
    ] = None,
    passphrase_file: PassphraseFile = None,
    new_passphrase_file: Annotated[
        Path | None,
        typer.Option("--new-passphrase-file", metavar="FILE", help="For the new key.", show_default="the same"),
    ] = None,
    no_passphrase: NoPassphrase = False,
    as_json: Json = False,
) -> None:
    """Make a new key for the same hospital, and a card that the old key signs as well.

    FILE is the identity file of the old key. It stays as it is, to be used until the new roster is in force. The new
    file's name ends in the first digits of its fingerprint.
    """
    from privfm.secagg.cards import Card
    from privfm_cli.identity_files import beside, generate, open_identity, write_pair
    from privfm_cli.papers import check_free
    from privfm_cli.passphrases import passphrase_to_seal

    _one_of(new_passphrase_file, no_passphrase)
    old = open_identity(file, passphrase_file).identity
    identity = generate(old.name)
    card = Card.of(identity, replaces=old)
    path = out or beside(Path(re.sub(r"\.\d{5}\.pem$", ".pem", str(file))), f".{card.fingerprint[:5]}.pem")
    check_free(path, beside(path, ".card.json"))
    passphrase = passphrase_to_seal(path, new_passphrase_file or passphrase_file, none=no_passphrase)
    files = _Files(path, write_pair(path, identity, passphrase, card), sealed=passphrase is not None)
    _show_made(card, files, {"previous_identity": str(file)}, as_json=as_json)
    if not as_json:
        check = f"privfm roster check ROSTER --key {shlex.quote(str(files.card))}"
        show(f"  Go on with {file} until the new roster is in force: {check}")
        show(f"  Then use {path} and delete {file}.")


@commands.command("revoke")
def revoke(
    file: IdentityFile,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The revocation.", show_default="NAME.revocation.json"),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Write a revocation: the key's own word that nobody may use it any more.

    FILE is an identity file. The revocation takes effect when it goes into a roster. One made beforehand and kept apart
    ends a key that is lost or stolen.
    """
    from privfm.secagg.cards import Revocation
    from privfm_cli.identity_files import beside, open_identity
    from privfm_cli.papers import check_free, write_paper

    path = out or beside(file, ".revocation.json")
    check_free(path)
    revocation = Revocation.of(open_identity(file, passphrase_file).identity)
    write_paper(path, revocation.to_json())
    if as_json:
        show_json({**_public(revocation), "revocation": str(path)})
        return
    _show_public(revocation)
    show(f"  revocation   {path}")
    show("Next")
    show(f"  To end the key now, send {path} to whoever makes the roster, and telephone.")
    show("  Else keep it where no stranger finds it: whoever has it can end the key, and nothing else.")


def _one_of(file: Path | None, none: bool) -> None:
    from privfm.errors import InputError

    if file is not None and none:
        raise InputError("--no-passphrase: leave it out, or the file with a passphrase")


def _public(paper: Card | Revocation) -> dict[str, Any]:
    """What everybody may know of a key, for JSON."""
    found: dict[str, Any] = {"name": paper.name, "fingerprint": paper.fingerprint, "key": paper.key.hex()}
    return found | ({"replaces": replaced} if (replaced := _replaced(paper)) else {})


def _replaced(paper: Card | Revocation) -> str | None:
    from privfm.secagg.cards import Card
    from privfm.secagg.identity import fingerprint

    old = paper.replaces if isinstance(paper, Card) else None
    return None if old is None else fingerprint(old.key)


def _show_found(paper: Card | Revocation, kind: str, more: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json({"kind": kind, **_public(paper), **more})
        return
    _show_public(paper)
    words = {"card": "a card, soundly signed", "revocation": "a revocation, soundly signed: this key may not be used"}
    sealed = "sealed with a passphrase" if more.get("sealed") else "not sealed: whoever gets the file has the key"
    show(f"  this is      {words.get(kind, f'an identity file, {sealed}')}")


def _show_public(paper: Card | Revocation) -> None:
    show(paper.name)
    show(f"  fingerprint  {paper.fingerprint}")
    show(f"  public key   {paper.key.hex()}")
    if replaced := _replaced(paper):
        show(f"  replaces     {replaced}")


def _show_made(card: Card, files: _Files, more: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        made = {"identity": str(files.identity), "card": str(files.card), "sealed": files.sealed}
        show_json({**_public(card), **made, **more})
        return
    _show_public(card)
    show(f"  identity     {files.identity}  ({'sealed' if files.sealed else 'not sealed'}; never leaves this hospital)")
    show(f"  card         {files.card}  (for everybody)")
    show("Next")
    show(f"  Send {files.card} to whoever makes the roster, and read them the fingerprint by telephone.")
